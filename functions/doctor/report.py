"""`cinevent doctor`: looks at an installation from where it runs, and says what is wrong and what mends it."""

import argparse
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.contract.settings import Settings
from functions.doctor import cluster, parts
from functions.doctor.finding import Finding, Verdict

_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def add(commands: Any) -> None:
    """Add the command to those of a parser."""
    text = "check an installation, and say what mends it"
    more = "exit code 1 if a part is wrong"
    command = commands.add_parser("doctor", help=text, description=f"{text[0].upper()}{text[1:]}; {more}.")
    command.set_defaults(command=_run)
    command.add_argument("parts", nargs="*", type=_part, metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    command.add_argument("--nats-monitor", default="", metavar="URL", help="of a NATS server's monitor, port 8222")
    command.add_argument("--json", action="store_true", help="print JSON, one line per check")


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """What is not a setting, and where to look."""

    nats_monitor: str = ""
    kubeconfig: str = ""
    in_pod: bool = False
    """Whether this process has an account of the cluster's own."""


# In the order of a request's way.
_CHECKS: dict[str, Callable[[Settings, Where], Iterable[Finding]]] = {
    "submit": lambda settings, _: [parts.submit(settings)],
    "nats": lambda settings, _: parts.log(settings),
    "sync": lambda _, where: [parts.sync(where.nats_monitor)],
    "store": lambda settings, _: [parts.store(settings)],
    "weights": lambda settings, _: [parts.weights(settings)],
    "webhooks": lambda settings, _: [parts.webhooks(settings)],
    "cluster": lambda settings, where: cluster.examine(settings, kubeconfig=where.kubeconfig, in_pod=where.in_pod),
}

PARTS = tuple(_CHECKS)


def examine(settings: Settings, where: Where, names: Collection[str] = ()) -> Iterator[Finding]:
    """The findings about these parts, or about all."""
    for name, check in _CHECKS.items():
        if not names or name in names:
            yield from check(settings, where)


def _part(name: str) -> str:
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"there is no part {name!r}; allowed: {', '.join(PARTS)}")
    return name


def _run(options: argparse.Namespace, settings: Settings) -> int:
    is_wrong = False
    where = Where(
        nats_monitor=options.nats_monitor, kubeconfig=os.environ.get("KUBECONFIG", ""), in_pod=_TOKEN.exists()
    )
    for finding in examine(settings, where, options.parts):
        is_wrong |= finding.verdict is Verdict.WRONG
        print(json.dumps(asdict(finding)) if options.json else _text(finding), flush=True)
    return int(is_wrong)


def _text(finding: Finding) -> str:
    line = f"{finding.verdict:<12} {finding.part:<12} {finding.text}"
    return f"{line}\n{'':<26}fix: {finding.fix}" if finding.fix else line
