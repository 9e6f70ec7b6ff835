"""JSON Schemas (2020-12) of every event's data, and the check against them. Pure.

`published()` is what docs/schemas/ holds (`make docs` writes it, a test compares); an event's `dataschema` names one of
them. Events may grow fields in v1, so unknown fields pass; requests may not have any (request.py).
"""

from functools import cache
from typing import Any

import jsonschema_rs

from engine.contract.errors import BadEvent
from engine.contract.events import EVENTS, SCHEMA_BASE, Event
from engine.contract.job import ID_PATTERN
from engine.contract.models import CATALOG
from engine.contract.request import PRIORITIES, schema
from engine.contract.rules import schema_problems

STAGES = ("loading", "encoding_text", "denoising", "decoding", "encoding_video", "storing")
"""What a run does, in this order; the words of a progress event's `stage`."""

WAITING = ("starting", "queued", "unschedulable", "quota", "image", "config", "no_pods")
"""Why a run is not up yet; the words of a waiting event's `reason`."""

_ATTEMPT = {"type": "integer", "minimum": 1, "description": "counts from 1"}
_LAST_ATTEMPT = {"type": "integer", "minimum": 0, "description": "0 if no run was ever started"}
_SECONDS = {"type": "number", "minimum": 0}
_ERROR = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {
        "code": {"type": "string", "pattern": "^[a-z_]+$", "description": "stable; listed in docs/events.md"},
        "message": {"type": "string", "description": "for people; may change"},
        "log_tail": {"type": "string", "description": "the last lines of the run's log"},
    },
}
_PLAN = {
    "type": "object",
    "description": "how the processes share the work",
    "properties": {
        **{
            name: {"type": "integer", "minimum": 1}
            for name in ("num_nodes", "num_processes", "cfg", "ring", "ulysses", "shard")
        },
        "reshard": {"type": "boolean", "description": "weights are gathered layer by layer; absent: no"},
        "speed": {
            "type": "object",
            "description": "what was chosen to make the run faster or smaller (docs/engine.md); absent: nothing",
        },
    },
}


def _artifact(**more: Any) -> dict[str, Any]:
    properties = {
        "key": {"type": "string", "description": "its name in the store"},
        "content_type": {"type": "string"},
        "size_bytes": {"type": "integer", "minimum": 0},
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "of its bytes"},
        **more,
    }
    return {"type": "object", "required": list(properties), "properties": properties}


_VIDEO = _artifact(
    width={"type": "integer"},
    height={"type": "integer"},
    num_frames={"type": "integer"},
    fps={"type": "integer"},
    duration_s=_SECONDS,
)

_DATA: dict[str, dict[str, Any]] = {
    "requested": {
        "request": {
            "type": "object",
            "required": ["model", "input", "priority", "max_attempts", "deadline_s"],
            "properties": {"priority": {"enum": list(PRIORITIES)}},
            "description": "the request with every default filled in",
        },
        "retry_of": {"type": "string", "pattern": ID_PATTERN, "description": "the job that this one tries again"},
    },
    "launched": {
        "attempt": _ATTEMPT,
        "launcher": {"type": "string", "description": "what started it"},
        "run": {"type": "string", "description": "its name where it runs"},
        "plan": _PLAN,
    },
    "waiting": {
        "attempt": _ATTEMPT,
        "reason": {"enum": list(WAITING), "description": "what it waits for"},
        "message": {"type": "string", "description": "the cluster's own words, for people"},
    },
    "started": {
        "attempt": _ATTEMPT,
        "world_size": {"type": "integer", "minimum": 1, "description": "processes of the run"},
    },
    "progress": {
        "attempt": _ATTEMPT,
        "stage": {"enum": list(STAGES), "description": "what the run does now"},
        "step": {"type": "integer", "minimum": 0, "description": "denoising steps done"},
        "steps": {"type": "integer", "minimum": 1, "description": "denoising steps in all"},
        "percent": {"type": "number", "minimum": 0, "maximum": 100, "description": "never falls within an attempt"},
        "eta_s": {"type": ["number", "null"], "minimum": 0, "description": "seconds to the end; null while unknown"},
        "seconds_per_step": {"type": ["number", "null"], "minimum": 0, "description": "null before the first"},
        "peak_memory_bytes": {
            "type": "integer",
            "minimum": 0,
            "description": "the most memory so far of the rank that reports: of its GPU, or of the process without one",
        },
        "preview": {
            "type": "object",
            "required": ["key", "step", "size_bytes"],
            "properties": {
                "key": {"type": "string"},
                "step": {"type": "integer", "minimum": 1},
                "size_bytes": {"type": "integer", "minimum": 0},
            },
            "description": "a small JPEG of the unfinished video: its `key` in the store, where a newer one replaces "
            "it, the `step` that it shows, its `size_bytes`",
        },
    },
    "drained": {
        "attempt": _ATTEMPT,
        "drains": {
            "type": "integer",
            "minimum": 1,
            "description": "attempts of the job that ended so, this one included",
        },
    },
    "retrying": {"attempt": {**_ATTEMPT, "description": "the next attempt"}, "error": _ERROR},
    "cancel": {},
    "completed": {
        "attempt": _ATTEMPT,
        "artifacts": {
            "type": "object",
            "required": ["video", "poster", "manifest"],
            "properties": {
                "video": _VIDEO,
                "poster": {**_artifact(), "description": "a picture of it; the first four fields of a video"},
                "manifest": {**_artifact(), "description": "how it was made, as JSON; the same four fields"},
            },
        },
        "timings": {"type": "object", "additionalProperties": _SECONDS, "description": "seconds per stage"},
    },
    "failed": {"attempt": _LAST_ATTEMPT, "error": _ERROR},
    "cancelled": {"attempt": _LAST_ATTEMPT},
    "check": {},
}

# Fields that a reader must do without: older engines do not say them, and the first events of a run or job cannot.
_OPTIONAL = {"requested": ("retry_of",), "progress": ("peak_memory_bytes", "preview")}


def published() -> dict[str, dict[str, Any]]:
    """Every schema by its file name."""
    events = {f"job.{name}.v1.json": _published(name) for name in EVENTS}
    request = {"title": "io.cinevent.job.request.v1", "oneOf": [schema(row) for row in CATALOG.values()]}
    return {**events, "job.request.v1.json": _with_head("job.request.v1.json", request)}


def validate(event: Event) -> Event:
    """The same event, if its data keeps the schema of its type; an event of another type passes. Raises BadEvent."""
    if event.name in EVENTS:
        found = tuple(schema_problems(_validator(event.name), dict(event.data)))
        if found:
            raise BadEvent(*found)
    return event


@cache
def _validator(name: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(_published(name))


def _published(name: str) -> dict[str, Any]:
    properties = {
        "job": {"type": "string", "pattern": ID_PATTERN},
        "tenant": {"type": "string"},
        **_DATA[name],
    }
    body = {
        "title": f"io.cinevent.job.{name}.v1",
        "description": EVENTS[name].promise,
        "type": "object",
        "required": [field for field in properties if field not in _OPTIONAL.get(name, ())],
        "properties": properties,
    }
    return _with_head(f"job.{name}.v1.json", body)


def _with_head(file: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"{SCHEMA_BASE}{file}", **body}
