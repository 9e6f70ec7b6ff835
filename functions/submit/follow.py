"""Following a job: its events as Server-Sent Events, or waiting for its end. Each follower holds a thread.

A live subscription only says that there is something new; what it is, is read from the log beyond the last position. So
nothing is missed and nothing comes twice, over reconnects of the reader and restarts of the log's server alike.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from flask import Response, jsonify, request

from engine.adapters.history import Placed, Position
from engine.contract.errors import TooMany, Unavailable
from engine.contract.events import OUTCOMES, Event, job_subjects
from engine.contract.job import Job
from functions.submit.handler import position_of
from functions.submit.route import Answer, Call, Parameter, Route, ref
from functions.submit.shown import job_json, time_text
from functions.web import empty

_SSE = "text/event-stream"
# How soon a follower notices that the process is to end, and how long it trusts a silent subscription. After the latter
# comes a comment, too: proxies close connections that are silent for a minute, some for half of one.
_TICK_S = 1.0
_SILENCE_S = 5.0
_RECONNECT_MS = 2000
_RETRY_AFTER_S = 5.0


@contextmanager
def place(call: Call) -> Iterator[None]:
    """One of the places for followers. Raises TooMany."""
    if not call.places.acquire(blocking=False):
        message = "too many clients follow jobs here; ask for the job itself now and then"
        raise TooMany(message, code="too_many_followers", retry_after_s=_RETRY_AFTER_S)
    try:
        yield
    finally:
        call.places.release()


def await_end(call: Call, job: Job, *, timeout_s: float) -> bool:
    """Return when the job has ended, or in time; False at once if there is no place to wait."""
    try:
        with place(call), call.deps.bus.listen(job_subjects(job.tenant, job.id)) as next_event:
            end = time.monotonic() + timeout_s
            while time.monotonic() < end and not call.find(job.id).state.is_final:
                until = min(end, time.monotonic() + _SILENCE_S)
                _await(next_event, call.is_stopping, until=until, wanted=OUTCOMES)
                if call.is_stopping():
                    break
    except TooMany:
        return False
    return True


def events(call: Call, job: str) -> Response:
    """The events of a job: a list, or a stream that goes on until the job has ended."""
    found = call.find(job)
    if request.accept_mimetypes.best_match(("application/json", _SSE)) != _SSE:
        return jsonify(events=[_event_json(placed) for placed in call.deps.history.events(call.tenant, job)])
    after = position_of(request.headers.get("Last-Event-ID") or request.args.get("after"))
    if after is not None and found.state.is_final and not call.deps.history.events(call.tenant, job, after=after):
        # What tells a browser to stop asking.
        return empty(204)
    stream = _stream(call, job, after)
    # The first piece now: what goes wrong before it is still an answer of its own.
    first = next(stream)
    response = Response(_Body(first, stream), mimetype=_SSE)
    response.headers["Cache-Control"] = "no-store"
    # nginx and those that read its header pass each piece on at once.
    response.headers["X-Accel-Buffering"] = "no"
    return response


class _Body:
    """A stream whose first piece is there already; closing it closes the stream."""

    def __init__(self, first: bytes, rest: Iterator[bytes]) -> None:
        self._first: bytes | None = first
        self._rest = rest

    def __iter__(self) -> "_Body":
        return self

    def __next__(self) -> bytes:
        first, self._first = self._first, None
        return next(self._rest) if first is None else first

    def close(self) -> None:
        """Leave the place of this follower."""
        getattr(self._rest, "close")()  # noqa: B009  (a generator; typing calls it an iterator)


def _stream(call: Call, job: str, after: Position | None) -> Iterator[bytes]:
    with place(call), call.deps.bus.listen(job_subjects(call.tenant, job)) as next_event:
        yield f"retry: {_RECONNECT_MS}\n\n".encode()
        found, position = call.deps.history.view(call.tenant, job)
        if after is None:
            yield _message("snapshot", position, job_json(found, base_url=call.base_url, now=datetime.now(UTC)))
        else:
            position = after
        is_over = found.state.is_final and after is None
        news: set[str] = set()
        while not (is_over or call.is_stopping()):
            placed = _read(call, job, position, only_progress=news == {"progress"})
            for item in _newest(placed):
                position = item.position
                yield _message(item.event.name, position, dict(item.event.data))
            is_over = any(item.event.name in OUTCOMES for item in placed)
            # What came while this was read is news as well: the subscription is older than the read.
            if not is_over and not (news := _await(next_event, call.is_stopping, until=time.monotonic() + _SILENCE_S)):
                # Shows whether the reader is still there.
                yield b": ping\n\n"
        yield _message("end" if is_over else "bye", position, {})


def _read(call: Call, job: str, position: Position, *, only_progress: bool) -> list[Placed]:
    """What the log has beyond a position."""
    try:
        return call.deps.history.events(call.tenant, job, after=position, only_progress=only_progress)
    except Unavailable:
        # The log is away for a moment; the next look reads on from the same position.
        return []


def _await(
    next_event: Callable[[float], Event | None],
    is_stopping: Callable[[], bool],
    *,
    until: float,
    wanted: tuple[str, ...] = (),
) -> set[str]:
    """The names of what has come, as soon as something has; none if nothing came before `until`."""
    news: set[str] = set()
    while not news and (left := until - time.monotonic()) > 0 and not is_stopping():
        event = next_event(min(left, _TICK_S))
        while event is not None:
            news |= {event.name} if not wanted or event.name in wanted else set()
            event = next_event(0)
    return news


def _newest(placed: list[Placed]) -> list[Placed]:
    """Without progress that newer progress has overtaken: a slow reader gets fewer events, not older ones."""
    return [
        item
        for index, item in enumerate(placed)
        if item.event.name != "progress" or index + 1 == len(placed) or placed[index + 1].event.name != "progress"
    ]


def _message(name: str, position: Position, data: dict[str, Any]) -> bytes:
    return f"id: {position}\nevent: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _event_json(placed: Placed) -> dict[str, Any]:
    event = placed.event
    return {
        "position": str(placed.position),
        "id": event.id,
        "type": event.type,
        "name": event.name,
        "time": time_text(event.time),
        "data": dict(event.data),
    }


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/jobs/<job>/events",
        view=events,
        text="The events of a job: as a list, or with `Accept: text/event-stream` live, until it has ended.",
        scope="read",
        group="jobs",
        is_streaming=True,
        parameters=(
            Parameter(name="job", text="the job's id", schema=ref("JobId"), place="path"),
            Parameter(
                name="Last-Event-ID",
                text="go on after this event; without it a stream begins with a `snapshot` of the job",
                schema={"type": "string"},
                place="header",
            ),
            Parameter(name="after", text="the same, for those that cannot set headers", schema={"type": "string"}),
        ),
        answers={
            200: Answer(
                text="the events so far; or a stream of `snapshot`, the events by name, and `end`",
                schema=ref("Events"),
                media_types=("application/json", _SSE),
            ),
            204: Answer(text="the job has ended and the reader has all of it"),
            429: Answer(text="too many clients follow jobs here", schema=ref("Problem")),
        },
    ),
)
