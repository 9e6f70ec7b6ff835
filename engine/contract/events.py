"""Events: what the parts say to each other, one CloudEvents type and one NATS subject each. Pure.

`Event` is a CloudEvent with a JSON object as data. `EVENTS` is the one table of types; `job_event` makes an event of it
and `subject` says where it is published. Bytes are codec.py's, schemas of the data are schemas.py's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

TYPE_PREFIX = "io.cinevent.job."
TYPE_SUFFIX = ".v1"
SCHEMA_BASE = "https://cinevent.io/schemas/"
REQUEST_TYPE = f"{TYPE_PREFIX}request{TYPE_SUFFIX}"
"""The type that a producer sends; its data is a request (docs/events.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A CloudEvent 1.0 whose data is a JSON object; extension values are strings."""

    id: str
    source: str
    type: str
    time: datetime
    data: Mapping[str, Any]
    subject: str | None = None
    dataschema: str | None = None
    extensions: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The short word of a job event's type, such as `completed`; the whole type of any other."""
        return self.type.removeprefix(TYPE_PREFIX).removesuffix(TYPE_SUFFIX)


@dataclass(frozen=True, kw_only=True, slots=True)
class EventKind:
    """One row of the event table."""

    suffix: str
    """The subject after `cinevent.<tenant>.<job>.`"""
    speaker: str
    """Which part emits it."""
    promise: str
    """What is true once it is in the log."""


EVENTS: dict[str, EventKind] = {
    "requested": EventKind(suffix="requested.<priority>", speaker="submit", promise="the job was accepted"),
    "launched": EventKind(suffix="launched", speaker="dispatch", promise="a run of this attempt was started"),
    "waiting": EventKind(suffix="waiting", speaker="dispatch", promise="the run is there and cannot start yet"),
    "started": EventKind(suffix="started", speaker="engine", promise="all ranks of the run are up"),
    "progress": EventKind(suffix="progress", speaker="engine", promise="the run reached this stage and step"),
    "drained": EventKind(
        suffix="drained", speaker="engine", promise="the run ended because it was told to; the next one goes on with it"
    ),
    "retrying": EventKind(suffix="retrying", speaker="dispatch", promise="the last attempt ended; the next one begins"),
    "cancel": EventKind(suffix="cancel", speaker="submit", promise="somebody asked to stop the job"),
    "completed": EventKind(suffix="done.completed", speaker="engine", promise="the artifacts are in the store"),
    "failed": EventKind(suffix="done.failed", speaker="engine, dispatch", promise="the job will not be tried again"),
    "cancelled": EventKind(suffix="done.cancelled", speaker="dispatch", promise="the job was stopped on request"),
    "check": EventKind(suffix="", speaker="dispatch", promise="an alarm rang: this job is to be looked at"),
}

OUTCOMES = tuple(name for name, kind in EVENTS.items() if kind.suffix.startswith("done."))
"""The events of which a job gets one, and nothing after it."""


def job_event(
    name: str,
    data: Mapping[str, Any],
    *,
    tenant: str,
    job: str,
    key: str = "",
    extensions: Mapping[str, str] | None = None,
) -> Event:
    """The event `name` of a job. `key` tells apart events of one name; the same key gives the same id, so that an
    event sent twice is one event.
    """
    assert name in EVENTS, name
    return Event(
        id="-".join(part for part in (job, key, name) if part),
        source=f"/cinevent/{tenant}",
        type=f"{TYPE_PREFIX}{name}{TYPE_SUFFIX}",
        time=datetime.now(UTC),
        subject=job,
        dataschema=f"{SCHEMA_BASE}job.{name}.v1.json",
        data={"job": job, "tenant": tenant, **data},
        extensions=extensions or {},
    )


def subject(event: Event) -> str:
    """The NATS subject of a job event."""
    suffix = EVENTS[event.name].suffix
    if event.name == "requested":
        suffix = f"requested.{event.data['request']['priority']}"
    return f"cinevent.{event.data['tenant']}.{event.data['job']}.{suffix}"


def rivals(event: Event) -> str:
    """The filter of all events of which a job gets only one in all: any acceptance, or any outcome."""
    group, _, _ = subject(event).rpartition(".")
    return f"{group}.*"


def job_subjects(tenant: str, job: str) -> str:
    """The filter that matches every subject of one job."""
    return f"cinevent.{tenant}.{job}.>"


def trace_extensions(extensions: Mapping[str, str]) -> dict[str, str]:
    """The extensions that every event of a job carries on from the event that caused it."""
    return {name: extensions[name] for name in ("traceparent", "tracestate", "correlationid") if name in extensions}
