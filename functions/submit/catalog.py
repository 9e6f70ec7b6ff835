"""What there is to ask for, and how busy it is: the models, and the tenant's queue as the log counts it."""

from datetime import UTC, datetime

from flask import Response, jsonify

from engine.contract.job import Job
from engine.contract.models import CATALOG
from engine.contract.request import PRIORITIES, schema
from engine.contract.rules import read_timestamp
from engine.contract.streams import CONSUMERS
from functions.submit.counts import Counts
from functions.submit.route import DEADLINE_S, Answer, Call, Route, ref

_RATE_WINDOW_S = 3600
# The oldest waiting job is looked for among so many subjects at a time.
_BATCH = 500


def models(_call: Call) -> Response:
    """The catalog: limits, defaults, and the JSON Schema of a request."""
    rows = [
        {
            "name": row.name,
            "image": row.image,
            "hub": row.hub or None,
            "max_pixels": row.max_pixels,
            "size_multiple": row.size_multiple,
            "frames": f"{row.temporal_stride}k + 1",
            "schema": schema(row),
        }
        for row in CATALOG.values()
    ]
    return jsonify(models=rows)


def queue(call: Call) -> Response:
    """How many jobs of the tenant wait and run, how long the oldest waits, how many end in an hour."""
    found = counts(call)
    ended = {
        name: call.deps.bus.since(
            "CINEVENT_JOBS", f"cinevent.{call.tenant}.*.done.{name}", seconds=_RATE_WINDOW_S, deadline_s=DEADLINE_S
        ).count
        for name in ("completed", "failed", "cancelled")
    }
    return jsonify(
        waiting={"total": found.num_waiting, **{name: len(found.waiting[name]) for name in PRIORITIES}},
        running=found.num_running,
        oldest_waiting_s=_oldest_s(call, found),
        last_hour=ended,
    )


def counts(call: Call) -> Counts:
    """The caller's jobs that have not ended. Raises Unavailable."""
    return call.counter.counts(call.deps.bus, call.tenant)


def position(call: Call, job: Job) -> int | None:
    """A job's place among those of its priority that no run was started for; None if it does not wait in the queue.

    Jobs of all tenants count: they wait for the same machines.
    """
    priority = job.request.priority
    consumer = CONSUMERS[f"dispatch-{priority}"]
    bus = call.deps.bus
    done = bus.acknowledged(consumer)
    if job.accepted_sequence <= done:
        return None
    ahead = bus.since(consumer.stream, consumer.filter, after=done).count
    behind = bus.since(consumer.stream, consumer.filter, after=job.accepted_sequence).count
    return max(1, ahead - behind)


def _oldest_s(call: Call, found: Counts) -> float | None:
    subjects = [subject for group in found.waiting.values() for subject in group]
    firsts = []
    for start in range(0, len(subjects), _BATCH):
        messages = call.deps.bus.last("CINEVENT_JOBS", subjects[start : start + _BATCH])
        firsts += [messages[0].headers["Nats-Time-Stamp"]] if messages else []
    if not firsts:
        return None
    oldest = min(read_timestamp(f"{first[:19]}Z") for first in firsts)
    return max(0.0, round((datetime.now(UTC) - oldest).total_seconds(), 1))


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/models",
        view=models,
        text="The models, with limits, defaults and the JSON Schema of a request.",
        scope="read",
        group="catalog",
        answers={200: Answer(text="all models", schema=ref("Models"))},
    ),
    Route(
        method="GET",
        path="/api/v1/queue",
        view=queue,
        text="How busy it is: the tenant's jobs that wait and run, and how many ended in the last hour.",
        scope="read",
        group="catalog",
        answers={200: Answer(text="the queue, at most a second old", schema=ref("Queue"))},
    ),
)
