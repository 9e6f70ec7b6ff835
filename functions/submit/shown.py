"""How a job reads over HTTP, and when to ask again. Pure."""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from engine.contract.job import Job, State

# A video takes a minute at least; a job that waits may wait long.
_RETRY_QUEUED_S = 5
_RETRY_RUNNING_S = 2
_RETRY_MAX_S = 30
FILES = {"video": "video.mp4", "poster": "poster.jpg"}
"""Artifacts that have a link of their own."""


def job_json(
    job: Job, *, base_url: str, now: datetime, position: int | None = None, urls: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A job as the API shows it; times in RFC 3339, durations in seconds.

    `position`: its place among the waiting jobs of its priority, from 1. `urls`: addresses of artifacts by name, where
    they may be read by anybody for a while; others are read through this API.
    """
    request = job.request.to_json()
    links = _links(job, base_url)
    return {
        "id": job.id,
        "state": job.state,
        "stage": stage(job, now=now),
        "progress": _progress(job),
        "attempt": job.attempt,
        "max_attempts": job.request.max_attempts,
        "model": job.request.model,
        "input": request["input"],
        "priority": job.request.priority,
        "position": position,
        "metadata": request["metadata"],
        "webhook": request["webhook"],
        "retry_of": job.retry_of or None,
        "created_at": time_text(job.created_at),
        "due_at": time_text(job.due_at),
        "started_at": time_text(job.started_at),
        "finished_at": time_text(job.finished_at),
        "deadline_at": time_text(job.due_at + timedelta(seconds=job.request.deadline_s)),
        "error": job.outcome.get("error"),
        "artifacts": _artifacts(job, {**links, **(urls or {})}),
        "timings": _timings(job),
        "links": links,
    }


def stage(job: Job, *, now: datetime) -> str:
    """The finer word for where a job is."""
    is_scheduled = job.stage == "queued" and job.attempt == 0 and now < job.due_at
    return "scheduled" if is_scheduled else job.stage


def etag(shown: Mapping[str, Any]) -> str:
    """Differs whenever a reader would see something else; links that only expire do not count."""
    # progress_at and all other times are not shown: what is shown is what counts.
    text = repr({name: value for name, value in shown.items() if name != "artifacts"})
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24]


def retry_after_s(job: Job) -> int | None:
    """When asking again is worth it; None once nothing changes any more."""
    if job.state.is_final:
        return None
    if job.state is State.PENDING:
        return _RETRY_QUEUED_S
    eta_s = job.progress.get("eta_s")
    # A quarter of what is left: four answers on the way, however long it is.
    return _RETRY_RUNNING_S if eta_s is None else max(1, min(_RETRY_MAX_S, int(eta_s / 4)))


def time_text(value: datetime | None) -> str | None:
    """RFC 3339, with a Z for UTC."""
    return None if value is None else value.isoformat().replace("+00:00", "Z")


def _links(job: Job, base_url: str) -> dict[str, str]:
    own = f"{base_url}/api/v1/jobs/{job.id}"
    links = {"self": own, "events": f"{own}/events", "cancel": f"{own}/cancel"}
    if job.state in (State.FAILED, State.CANCELLED):
        links["retry"] = f"{own}/retry"
    if job.state is State.COMPLETED:
        links |= {name: f"{own}/{name}" for name in FILES}
    elif job.progress.get("preview"):
        links["preview"] = f"{own}/preview"
    return links


def _artifacts(job: Job, urls: Mapping[str, str]) -> dict[str, Any] | None:
    found: Mapping[str, Any] | None = job.outcome.get("artifacts")
    if found is None:
        return None
    return {name: {**artifact, **({"url": urls[name]} if name in urls else {})} for name, artifact in found.items()}


def _progress(job: Job) -> dict[str, Any] | None:
    if not job.progress:
        return None
    found = {name: job.progress[name] for name in ("percent", "step", "steps", "eta_s", "seconds_per_step")}
    return {**found, "percent": 100.0, "eta_s": 0.0} if job.state is State.COMPLETED else found


def _timings(job: Job) -> dict[str, Any] | None:
    """Seconds per stage of the last attempt, how long it waited for it, and all from due to done."""
    if job.finished_at is None:
        return None
    waited = {} if job.started_at is None else {"waiting": _seconds(job.due_at, job.started_at)}
    return {**waited, **job.outcome.get("timings", {}), "total": _seconds(job.due_at, job.finished_at)}


def _seconds(start: datetime, end: datetime) -> float:
    # Clocks of two machines: never below zero.
    return max(0.0, round((end - start).total_seconds(), 3))
