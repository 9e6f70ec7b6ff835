"""submit's decisions as values: what a body asks for, which job it is, what a query means. No I/O."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from engine.adapters.history import Position, Query
from engine.contract.errors import BadEvent, Invalid, Problem
from engine.contract.events import REQUEST_TYPE, Event, job_event, trace_extensions
from engine.contract.job import Job, State, derived_id, new_id
from engine.contract.models import CATALOG
from engine.contract.request import PROCESS_IN_MAX_S, Request, parse
from engine.contract.rules import TIMESTAMP_RULE, read_timestamp

_KEY_MAX_CHARACTERS = 255
# Longer, and a proxy between is likely to have hung up.
WAIT_MAX_S = 60
# All of a batch are accepted before the answer; so many synced writes take a second or two.
BATCH_MAX_EVENTS = 100
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})\s*(?:$|[,;])", re.IGNORECASE | re.ASCII)
_METADATA = "metadata."


def from_json(data: Any, *, tenant: str, key: str | None, extensions: Mapping[str, str], now: datetime) -> Event:
    """The `requested` event for a JSON body; the same idempotency key names the same job. Raises Invalid."""
    job = new_id() if key is None else derived_id(tenant, "key", key)
    return _requested(data, tenant=tenant, job=job, extensions=extensions, now=now)


def key_of(text: str | None) -> str | None:
    """The idempotency key in a header; an event needs none, but a bad one is a mistake there, too. Raises Invalid."""
    if text is not None and not (0 < len(text) <= _KEY_MAX_CHARACTERS and text.isprintable()):
        message = f"allowed: 1 to {_KEY_MAX_CHARACTERS} printable characters"
        raise Invalid(Problem(pointer="/Idempotency-Key", rule="length", message=message))
    return text


def from_event(event: Event, *, tenant: str, now: datetime) -> Event:
    """The `requested` event for a producer's CloudEvent; the same source and id name the same job. Raises Invalid."""
    if event.type != REQUEST_TYPE:
        message = f"the event's type is {event.type!r}; allowed: {REQUEST_TYPE}"
        raise BadEvent(Problem(pointer="/type", rule="const", message=message))
    job = derived_id(tenant, "cloudevent", event.source, event.id)
    # A producer finds its own event again in everything that follows from it.
    extensions = {"correlationid": event.id, **trace_extensions(event.extensions)}
    return _requested(event.data, tenant=tenant, job=job, extensions=extensions, now=now)


def from_batch(events: list[Event], *, tenant: str, now: datetime) -> list[Event]:
    """The `requested` events for a batch; one that breaks a rule refuses them all, with its place. Raises Invalid."""
    if not 0 < len(events) <= BATCH_MAX_EVENTS:
        message = f"a batch of {len(events)} events; allowed: 1 to {BATCH_MAX_EVENTS}"
        raise BadEvent(Problem(pointer="", rule="batch", message=message))
    found = []
    for index, event in enumerate(events):
        try:
            found.append(from_event(event, tenant=tenant, now=now))
        except Invalid as error:
            placed = (Problem(pointer=f"/{index}{p.pointer}", rule=p.rule, message=p.message) for p in error.problems)
            raise type(error)(*placed) from error
    return found


def again(job: Job) -> Event:
    """The `requested` event for a job that ended without a video: a new job for the same request.

    The same job gives the same new job, so that a repeat makes no second one.
    """
    request = {**job.request.to_json(), "process_at": None, "process_in_s": None}
    return job_event(
        "requested",
        {"request": request, "retry_of": job.id},
        tenant=job.tenant,
        job=derived_id(job.tenant, "retry", job.id),
        extensions=job.extensions,
    )


def cancel(job: Job) -> Event:
    """The event that asks to stop a job."""
    return job_event("cancel", {}, tenant=job.tenant, job=job.id, extensions=job.extensions)


def cancelled(job: Job) -> Event:
    """The outcome of a job that was stopped before any run of it."""
    data = {"attempt": job.attempt}
    return job_event("cancelled", data, tenant=job.tenant, job=job.id, key=f"a{job.attempt}", extensions=job.extensions)


def is_same_request(event: Event, job: Job) -> bool:
    """Whether a repeat asks for what the job was accepted for."""
    return bool(event.data["request"] == job.request.to_json())


def wait_s(prefer: str) -> int:
    """How long a `Prefer` header (RFC 7240) asks to wait; 0: not at all."""
    found = _WAIT.search(prefer)
    return min(WAIT_MAX_S, int(found[1])) if found else 0


def position_of(text: str | None) -> Position | None:
    """The position in a Last-Event-ID; None for what is none, since browsers send whatever they were sent."""
    found = re.fullmatch(r"(\d{1,19})-(\d{1,19})", text or "", re.ASCII)
    return Position(jobs=int(found[1]), progress=int(found[2])) if found else None


def cursor_of(text: str | None) -> int | None:
    """The cursor in a query. Raises Invalid."""
    return None if text is None else _whole(text, name="cursor", low=1, high=2**63)


def limit_of(text: str | None) -> int:
    """The page size in a query, 20 by default. Raises Invalid."""
    return 20 if text is None else _whole(text, name="limit", low=1, high=100)


def query_of(given: Mapping[str, str]) -> Query:
    """Which jobs a query asks for. Raises Invalid about a name or a value that is not allowed."""
    for name in given:
        if name not in _FILTERS and not name.startswith(_METADATA):
            allowed = ", ".join((*_FILTERS, f"{_METADATA}NAME"))
            raise Invalid(Problem(pointer=f"/{name[:80]}", rule="unexpected", message=f"allowed: {allowed}"))
    state = _one_of(given, "state", tuple(State))
    model = _one_of(given, "model", tuple(CATALOG))
    labels = {name.removeprefix(_METADATA): value for name, value in given.items() if name.startswith(_METADATA)}

    def keeps(job: Job) -> bool:
        is_named = state in (None, job.state) and model in (None, job.request.model)
        return is_named and labels.items() <= job.request.metadata.items()

    return Query(keeps=keeps, after=_time(given, "created_after"), before=_time(given, "created_before"))


_FILTERS = ("limit", "cursor", "state", "model", "created_after", "created_before")


def _requested(data: Any, *, tenant: str, job: str, extensions: Mapping[str, str], now: datetime) -> Event:
    request = parse(data, job=job)
    _check_due(request, now=now)
    return job_event("requested", {"request": request.to_json()}, tenant=tenant, job=job, extensions=extensions)


def _check_due(request: Request, *, now: datetime) -> None:
    latest = now + timedelta(seconds=PROCESS_IN_MAX_S)
    if request.process_at and read_timestamp(request.process_at) > latest:
        message = f"process_at is {request.process_at}; allowed: up to {PROCESS_IN_MAX_S // 86400} days from now"
        raise Invalid(Problem(pointer="/process_at", rule="maximum", message=message))


def _one_of(given: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is None or value in allowed:
        return value
    message = f"{name} is {value[:40]!r}; allowed: {', '.join(allowed)}"
    raise Invalid(Problem(pointer=f"/{name}", rule="enum", message=message))


def _time(given: Mapping[str, str], name: str) -> datetime | None:
    value = given.get(name)
    if value is None:
        return None
    try:
        # A plus sign that was not percent-encoded arrives as a space.
        return read_timestamp(value.replace(" ", "+"))
    except ValueError as error:
        message = f"{name} is {value[:40]!r}; {TIMESTAMP_RULE}"
        raise Invalid(Problem(pointer=f"/{name}", rule="timestamp", message=message)) from error


def _whole(text: str, *, name: str, low: int, high: int) -> int:
    if text.isascii() and text.isdigit() and low <= int(text[:20]) <= high:
        return int(text[:20])
    message = f"{name} is {text[:40]!r}; allowed: a whole number from {low} to {high}"
    raise Invalid(Problem(pointer=f"/{name}", rule="range", message=message))
