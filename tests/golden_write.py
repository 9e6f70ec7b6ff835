"""The golden files: one per event type, with its headers and body in NATS form and in HTTP binary form; the manifests
of runs in a cluster; and what is read of the objects of a run there.

`python -m tests.golden_write` writes them (`make golden`); tests/contract/test_wire.py and tests/unit compare. What
stands in those of events is read by other programs: change them in a commit of its own, and only when the wire is to
change.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from engine.contract.codec import encode_binary, encode_nats
from engine.contract.events import EVENTS, REQUEST_TYPE, Event
from functions.dispatch.launchers.classify import classify
from functions.dispatch.launchers.cluster import KINDS
from tests.make import AT, a_body, an_event, an_input, an_order
from tests.runs import CASES

FOLDER = Path(__file__).parent / "golden"
FORMS = {"nats": encode_nats, "http": encode_binary}
_TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "correlationid": "order 7/\u00e9"}


def golden_events() -> dict[str, Event]:
    """One event of each type by the name of its file."""
    events = {name: an_event(name, key="a1", extensions=_TRACE) for name in EVENTS}
    request = Event(
        id="order-7",
        source="/shop",
        type=REQUEST_TYPE,
        time=AT.replace(microsecond=250_000),
        subject="\u00e9clair 100%",
        data=a_body(input=an_input(prompt='\u00e9clair, "rain"\n\U0001f6a3')),
    )
    return {"request": request, **events}


def golden_files() -> Iterator[tuple[Path, str]]:
    """Every golden file of the wire and what it holds."""
    for name, event in golden_events().items():
        forms = {form: encode(event) for form, encode in FORMS.items()}
        texts = {form: {"headers": headers, "body": body.decode()} for form, (headers, body) in forms.items()}
        yield FOLDER / f"event.{name}.json", json.dumps(texts, indent=2) + "\n"


def golden_runs() -> Iterator[tuple[Path, str]]:
    """Every golden file of the launchers in a cluster."""
    for name, kind in KINDS.items():
        manifests = {str(order.plan.num_nodes): kind.manifest(order) for order in (an_order(1), an_order(2))}
        yield FOLDER / f"manifest.{name}.json", _json(manifests)
    rows = {
        name: {
            "objects": asdict(case.evidence),
            "after_s": case.after_s,
            "observation": asdict(classify(case.evidence, now=case.now)),
        }
        for name, case in CASES.items()
    }
    yield FOLDER / "runs.json", _json(rows)


def _json(value: object) -> str:
    return json.dumps(value, indent=1, default=str) + "\n"


if __name__ == "__main__":
    for path, text in (*golden_files(), *golden_runs()):
        path.write_text(text)
