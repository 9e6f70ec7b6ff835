"""Following a job live: its events from a NATS subscription, drawn as a bar on a terminal, as lines elsewhere.

The subscription comes first and one read over HTTP second, so that no event falls between; while nothing arrives the
read is repeated, in case NATS was away when the job ended.
"""

import json
import shutil
import sys
from typing import Any

from engine.adapters.bus import Bus
from engine.contract.codec import encode
from engine.contract.events import OUTCOMES, Event, job_subjects
from functions.client import Client

_FINAL = ("COMPLETED", "FAILED", "CANCELLED")
_SILENCE_S = 5.0
_BAR_WIDTH = 28
# ANSI: to the start of the line, and erase to its end; the bar leaves nothing behind.
_CLEAR = "\r\x1b[K"


def watch(bus: Bus, client: Client, job: str, *, tenant: str, as_json: bool) -> str:
    """Show the job's events until it ends; returns its final state. Raises NotFound, Unavailable, Refused."""
    with bus.listen(job_subjects(tenant, job)) as next_event:
        state = client.get(job)
        painter = _Painter(as_json=as_json)
        while state["state"] not in _FINAL:
            event = next_event(_SILENCE_S)
            if event is not None:
                painter.paint(event)
            if event is None or event.name in OUTCOMES:
                state = client.get(job)
        painter.finish(state)
        return str(state["state"])


def bar(data: dict[str, Any]) -> str:
    """One line for the data of a progress event."""
    done = round(data["percent"] / 100 * _BAR_WIDTH)
    eta = "" if data["eta_s"] is None else f"  ETA {data['eta_s']:.0f} s"
    steps = f"{data['step']}/{data['steps']}"
    return f"{data['stage']:<14} [{'#' * done}{'.' * (_BAR_WIDTH - done)}] {data['percent']:3.0f} %  step {steps}{eta}"


def words(event: Event) -> str:
    """One line for any other event: its name, and for a run that waits what it waits for."""
    return f"waiting: {event.data['message']}" if event.name == "waiting" else event.name


class _Painter:
    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._is_live = sys.stdout.isatty() and not as_json

    def paint(self, event: Event) -> None:
        if self._as_json:
            print(encode(event)[1].decode(), flush=True)
        elif event.name != "progress":
            self._line(words(event))
        elif self._is_live:
            print(f"{_CLEAR}{bar(dict(event.data))[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        else:
            self._line(bar(dict(event.data)))

    def finish(self, job: dict[str, Any]) -> None:
        if self._as_json:
            print(json.dumps(job, ensure_ascii=False))
            return
        reason = f": {job['error']['message']} ({job['error']['code']})" if job["error"] else ""
        self._line(f"{job['id']} {job['state']}{reason}")

    def _line(self, text: str) -> None:
        print(f"{_CLEAR if self._is_live else ''}{text}", flush=True)
