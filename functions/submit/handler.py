"""submit's decisions as values: what a body asks for, which job it is, and how a job reads over HTTP. No I/O."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from engine.contract.errors import BadEvent, Invalid, Problem
from engine.contract.events import REQUEST_TYPE, Event, job_event, trace_extensions
from engine.contract.job import Job, State, derived_id, new_id
from engine.contract.request import parse

_KEY_MAX_CHARACTERS = 255


def from_json(data: Any, *, tenant: str, key: str | None, extensions: Mapping[str, str]) -> Event:
    """The `requested` event for a JSON body; the same idempotency key names the same job. Raises Invalid."""
    if key is not None and not (0 < len(key) <= _KEY_MAX_CHARACTERS and key.isprintable()):
        message = f"allowed: 1 to {_KEY_MAX_CHARACTERS} printable characters"
        raise Invalid(Problem(pointer="/Idempotency-Key", rule="length", message=message))
    job = new_id() if key is None else derived_id(tenant, "key", key)
    return _requested(data, tenant=tenant, job=job, extensions=extensions)


def from_event(event: Event, *, tenant: str) -> Event:
    """The `requested` event for a producer's CloudEvent; the same source and id name the same job. Raises Invalid."""
    if event.type != REQUEST_TYPE:
        message = f"the event's type is {event.type!r}; allowed: {REQUEST_TYPE}"
        raise BadEvent(Problem(pointer="/type", rule="const", message=message))
    job = derived_id(tenant, "cloudevent", event.source, event.id)
    # A producer finds its own event again in everything that follows from it.
    extensions = {"correlationid": event.id, **trace_extensions(event.extensions)}
    return _requested(event.data, tenant=tenant, job=job, extensions=extensions)


def cancel(job: Job) -> Event:
    """The event that asks to stop a job."""
    return job_event("cancel", {}, tenant=job.tenant, job=job.id, extensions=job.extensions)


def is_same_request(event: Event, job: Job) -> bool:
    """Whether a repeat asks for what the job was accepted for."""
    return bool(event.data["request"] == job.request.to_json())


def job_json(job: Job, *, base_url: str) -> dict[str, Any]:
    """A job as the API shows it; times in RFC 3339, durations in seconds."""
    links = {"self": f"{base_url}/api/v1/jobs/{job.id}", "cancel": f"{base_url}/api/v1/jobs/{job.id}/cancel"}
    if job.state is State.COMPLETED:
        links["video"] = f"{base_url}/api/v1/jobs/{job.id}/video"
    request = job.request.to_json()
    return {
        "id": job.id,
        "state": job.state,
        "stage": job.stage,
        "progress": _progress(job),
        "attempt": job.attempt,
        "max_attempts": job.request.max_attempts,
        "model": job.request.model,
        "input": request["input"],
        "priority": job.request.priority,
        "metadata": request["metadata"],
        "webhook": request["webhook"],
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "finished_at": _time(job.finished_at),
        "error": job.outcome.get("error"),
        "artifacts": job.outcome.get("artifacts"),
        "timings": job.outcome.get("timings"),
        "links": links,
    }


def cursor_of(text: str | None) -> int | None:
    """The cursor in a query. Raises Invalid."""
    return None if text is None else _whole(text, name="cursor", low=1, high=2**63)


def limit_of(text: str | None) -> int:
    """The page size in a query, 20 by default. Raises Invalid."""
    return 20 if text is None else _whole(text, name="limit", low=1, high=100)


def _requested(data: Any, *, tenant: str, job: str, extensions: Mapping[str, str]) -> Event:
    request = parse(data, job=job)
    return job_event("requested", {"request": request.to_json()}, tenant=tenant, job=job, extensions=extensions)


def _progress(job: Job) -> dict[str, Any] | None:
    if not job.progress:
        return None
    found = {name: job.progress[name] for name in ("percent", "step", "steps", "eta_s", "seconds_per_step")}
    return {**found, "percent": 100.0, "eta_s": 0.0} if job.state is State.COMPLETED else found


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat().replace("+00:00", "Z")


def _whole(text: str, *, name: str, low: int, high: int) -> int:
    if text.isascii() and text.isdigit() and low <= int(text[:20]) <= high:
        return int(text)
    message = f"{name} is {text[:40]!r}; allowed: a whole number from {low} to {high}"
    raise Invalid(Problem(pointer=f"/{name}", rule="range", message=message))
