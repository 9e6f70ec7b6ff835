"""A job: its id, its states, and its state as the fold of its events. Pure.

The log is the only store (docs/architecture.md): nothing here is written anywhere; `fold` computes a Job from the last
event per subject whenever somebody asks.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from engine.contract.events import Event, trace_extensions
from engine.contract.request import Request
from engine.contract.rules import read_timestamp

ID_PATTERN = r"^j[a-z2-7]{25}$"
# Their subjects would read like the system's own: cinevent.dead.>, cinevent.alarms.>
_RESERVED_TENANTS = frozenset({"dead", "alarms", "webhooks", "deliveries", "endpoints"})


class State(StrEnum):
    """What the API shows; `stage` is the finer word."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Nothing follows a final state."""
        return self in (State.COMPLETED, State.FAILED, State.CANCELLED)


_DONE = {"completed": State.COMPLETED, "failed": State.FAILED, "cancelled": State.CANCELLED}

TRANSITIONS: dict[State, dict[str, State]] = {
    State.PENDING: {
        "launched": State.PENDING,
        "waiting": State.PENDING,
        "started": State.PROCESSING,
        "drained": State.PENDING,
        "retrying": State.PENDING,
        "cancel": State.PENDING,
        **_DONE,
    },
    State.PROCESSING: {
        # No "launched": the engine may speak before dispatch has written down that it launched it.
        "started": State.PROCESSING,
        "progress": State.PROCESSING,
        "drained": State.PENDING,
        "retrying": State.PENDING,
        "cancel": State.PROCESSING,
        **_DONE,
    },
    State.COMPLETED: {},
    State.FAILED: {},
    State.CANCELLED: {},
}
"""Which event leads where. An event that is not in its row changes nothing: it came too late or too early."""

_STAGES = {"launched": "launching", "started": "starting", "drained": "drained", "retrying": "retrying"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The state of one job, as of `sequence` in the stream of jobs."""

    id: str
    tenant: str
    request: Request
    state: State
    stage: str
    attempt: int
    """0 before the first launch."""
    drained: Mapping[str, Any]
    """Data of the last `drained` event, of this or an earlier attempt; empty before it."""
    waiting: Mapping[str, Any]
    """Data of the last `waiting` event; empty when the run does not wait."""
    cancel_requested: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: Mapping[str, Any]
    """Data of the newest progress event of this attempt; empty before the first."""
    progress_at: datetime | None
    outcome: Mapping[str, Any]
    """Data of the final event; empty before it."""
    sequence: int
    accepted_sequence: int
    """Of its request in the stream of jobs: its place among all jobs."""
    retry_of: str
    """The job that this one tries again; empty for any other."""
    extensions: Mapping[str, str]
    """Trace context of the request, which every later event of the job carries on."""

    @property
    def drains(self) -> int:
        """Attempts that ended because they were told to: they say nothing against the job."""
        return int(self.drained.get("drains", 0))

    @property
    def due_at(self) -> datetime:
        """Not before this time does it start; its deadline counts from here."""
        request = self.request
        wanted = read_timestamp(request.process_at) if request.process_at else self.created_at
        return max(wanted, self.created_at + timedelta(seconds=request.process_in_s or 0))


def new_id() -> str:
    """A random job id: `j` and 25 lower-case base32 characters (a DNS label, a NATS token, an S3 key)."""
    return _id(secrets.token_bytes(16))


def derived_id(tenant: str, kind: str, *parts: str) -> str:
    """The id that a repeat of the same request gets again; `kind` keeps idempotency keys and CloudEvents apart."""
    # Lengths before values: ("a", "bc") and ("ab", "c") must differ.
    text = "".join(f"{len(part.encode())}:{part}" for part in (tenant, kind, *parts))
    return _id(hashlib.sha256(text.encode()).digest())


def is_id(text: str) -> bool:
    """Whether `text` has the form of a job id."""
    return re.fullmatch(ID_PATTERN, text) is not None


def is_tenant(text: str) -> bool:
    """Whether `text` may name a tenant: a DNS label that no subject of the system uses."""
    return re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?", text) is not None and text not in _RESERVED_TENANTS


def run_name(job: str, attempt: int) -> str:
    """The name of what a launcher starts for one attempt; 28 to 29 characters, a DNS label."""
    return f"{job}-a{attempt}"


def artifact_key(tenant: str, job: str, attempt: int, name: str) -> str:
    """Where an artifact is in the store; each attempt has a folder, so that a late one overwrites nothing."""
    return f"{tenant}/{job}/a{attempt}/{name}"


def upload_key(tenant: str, name: str) -> str:
    """Where an upload is in the store; no job id reads like this folder."""
    return f"{tenant}/uploads/{name}"


def checkpoint_folder(tenant: str, job: str) -> str:
    """Where a job's checkpoints are in the store; the same for all attempts: one goes on where another ended."""
    return f"{tenant}/{job}/checkpoints"


def fold(events: Iterable[tuple[int, Event]]) -> Job | None:
    """The state after these (stream sequence, event) pairs, in log order; None without a `requested` event.

    Words of an older attempt are ignored: a run that was given up may still speak.
    """
    job: Job | None = None
    # The request first: one that was put into the queue once more stands behind what has happened since.
    for sequence, event in sorted(events, key=lambda pair: pair[1].name != "requested"):
        if event.name == "requested":
            job = job or _accepted(sequence, event)
        elif job is not None:
            job = _apply(job, sequence, event)
    return job


def _accepted(sequence: int, event: Event) -> Job:
    return Job(
        id=event.data["job"],
        tenant=event.data["tenant"],
        request=Request.from_json(event.data["request"]),
        state=State.PENDING,
        stage="queued",
        attempt=0,
        drained={},
        waiting={},
        cancel_requested=False,
        created_at=event.time,
        started_at=None,
        finished_at=None,
        progress={},
        progress_at=None,
        outcome={},
        sequence=sequence,
        accepted_sequence=sequence,
        retry_of=event.data.get("retry_of", ""),
        extensions=trace_extensions(event.extensions),
    )


def _apply(job: Job, sequence: int, event: Event) -> Job:
    after = TRANSITIONS[job.state].get(event.name)
    attempt = event.data.get("attempt", job.attempt)
    if after is None or (attempt < job.attempt and not after.is_final):
        return job
    if attempt > job.attempt:
        job = replace(job, attempt=attempt, progress={}, progress_at=None)
    if event.name == "progress":
        return replace(job, progress=event.data, progress_at=event.time, stage=_cancelling(job) or event.data["stage"])
    job = replace(job, state=after, sequence=max(job.sequence, sequence))
    if after.is_final:
        return replace(job, stage=event.name, finished_at=event.time, outcome=event.data)
    if event.name == "drained":
        job = replace(job, drained=event.data)
    if event.name == "cancel":
        return replace(job, cancel_requested=True, stage="cancelling")
    if event.name == "waiting":
        stage = f"waiting: {event.data['reason']}: {event.data['message']}"
        return replace(job, waiting=event.data, stage=_cancelling(job) or stage)
    started_at = event.time if event.name == "started" else job.started_at
    return replace(job, started_at=started_at, waiting={}, stage=_cancelling(job) or _STAGES[event.name])


def _cancelling(job: Job) -> str:
    return "cancelling" if job.cancel_requested else ""


def _id(raw: bytes) -> str:
    return "j" + base64.b32encode(raw).decode().lower()[:25]
