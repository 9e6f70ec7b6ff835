"""The golden files of the wire: one per event type, with its headers and body in NATS form and in HTTP binary form.

`python -m tests.golden_write` writes them (`make golden`); tests/contract/test_wire.py compares. What stands in them is
read by other programs: change them in a commit of its own, and only when the wire is to change.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from engine.contract.codec import encode_binary, encode_nats
from engine.contract.events import EVENTS, REQUEST_TYPE, Event
from tests.make import AT, a_body, an_event, an_input

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


if __name__ == "__main__":
    for path, text in golden_files():
        path.write_text(text)
