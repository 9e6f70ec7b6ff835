"""The JetStream streams and durable consumers: one table for the code, the manifests and the documents. Pure.

adapters/bus.py makes them at start, idempotently; functions/source.py runs the consumers. No two streams may share a
subject, and JetStream compares patterns: that is why the system's own subjects have six tokens, a job's four or five.
"""

from dataclasses import dataclass

_DAY_S = 24 * 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """A stream; ages in seconds, 0 for ever."""

    name: str
    subjects: tuple[str, ...]
    max_age_s: int = 0
    max_per_subject: int = -1
    duplicate_window_s: int = 120
    """How long a second message of the same Nats-Msg-Id is dropped."""
    work_queue: bool = False
    """An acknowledged message is gone."""
    schedules: bool = False
    """Messages may carry Nats-Schedule: JetStream delivers them at a set time."""


STREAMS = (
    Stream(
        name="CINEVENT_JOBS",
        subjects=(
            "cinevent.*.*.requested.*",
            "cinevent.*.*.launched",
            "cinevent.*.*.started",
            "cinevent.*.*.drained",
            "cinevent.*.*.retrying",
            "cinevent.*.*.cancel",
            "cinevent.*.*.done.*",
        ),
        max_age_s=30 * _DAY_S,
    ),
    Stream(name="CINEVENT_PROGRESS", subjects=("cinevent.*.*.progress",), max_age_s=_DAY_S, max_per_subject=500),
    Stream(
        name="CINEVENT_ALARMS",
        subjects=("cinevent.alarms.set.*.*.*", "cinevent.alarms.due.*.*.*"),
        work_queue=True,
        schedules=True,
    ),
    Stream(
        name="CINEVENT_WEBHOOKS",
        subjects=("cinevent.webhooks.set.*.*.*", "cinevent.webhooks.due.*.*.*"),
        # The newest word about a delivery is the one that counts: news of progress that nobody took yet is replaced.
        max_per_subject=1,
        # Longer than a fan-out waits for its next try: the same event makes its deliveries once.
        duplicate_window_s=3600,
        work_queue=True,
        schedules=True,
    ),
    Stream(name="CINEVENT_DELIVERIES", subjects=("cinevent.deliveries.*.*.*.*",), max_age_s=30 * _DAY_S),
    Stream(name="CINEVENT_ENDPOINTS", subjects=("cinevent.endpoints.status.*.*.last",), max_per_subject=1),
    Stream(name="CINEVENT_DEAD", subjects=("cinevent.dead.*.*.*.*",), max_age_s=30 * _DAY_S),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Consumer:
    """A durable consumer and how its source treats it."""

    name: str
    stream: str
    filter: str
    slots: int
    """Most messages in hand at once; for consumers of one source also their weight."""
    tries: int
    """Deliveries before a message becomes a dead letter; a 429 is not one."""
    batch: int = 1
    """Most messages in one POST; more than one go as a batch of CloudEvents."""
    posts: int = 1000
    """Most POSTs at once: while they are out, what arrives gathers for the next batch."""


CONSUMERS: dict[str, Consumer] = {
    consumer.name: consumer
    for consumer in (
        # 6:3:1: a low job waits behind at most nine others, never for ever.
        Consumer(name="dispatch-high", stream="CINEVENT_JOBS", filter="cinevent.*.*.requested.high", slots=6, tries=20),
        Consumer(
            name="dispatch-normal", stream="CINEVENT_JOBS", filter="cinevent.*.*.requested.normal", slots=3, tries=20
        ),
        Consumer(name="dispatch-low", stream="CINEVENT_JOBS", filter="cinevent.*.*.requested.low", slots=1, tries=20),
        Consumer(name="dispatch-cancel", stream="CINEVENT_JOBS", filter="cinevent.*.*.cancel", slots=4, tries=20),
        Consumer(
            name="dispatch-alarms", stream="CINEVENT_ALARMS", filter="cinevent.alarms.due.*.*.*", slots=4, tries=20
        ),
        # 24 tries with the source's waits span one to two hours: notify may be down that long.
        Consumer(
            name="notify-done",
            stream="CINEVENT_JOBS",
            filter="cinevent.*.*.done.*",
            slots=400,
            tries=24,
            batch=100,
            posts=4,
        ),
        Consumer(
            name="notify-progress",
            stream="CINEVENT_PROGRESS",
            filter="cinevent.*.*.progress",
            slots=100,
            tries=24,
            batch=100,
            posts=2,
        ),
        # Eight posts: half of the threads that serve notify; the other half is for fan-out and probes.
        Consumer(
            name="notify-deliveries",
            stream="CINEVENT_WEBHOOKS",
            filter="cinevent.webhooks.due.*.*.*",
            slots=800,
            tries=24,
            batch=100,
            posts=8,
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceKind:
    """One source: the consumers it pulls, weighted by their slots, and the function it feeds."""

    name: str
    function: str
    consumers: tuple[str, ...]


SOURCES: dict[str, SourceKind] = {
    source.name: source
    for source in (
        SourceKind(
            name="requests", function="dispatch", consumers=("dispatch-high", "dispatch-normal", "dispatch-low")
        ),
        SourceKind(name="cancels", function="dispatch", consumers=("dispatch-cancel",)),
        SourceKind(name="alarms", function="dispatch", consumers=("dispatch-alarms",)),
        SourceKind(name="outcomes", function="notify", consumers=("notify-done", "notify-progress")),
        SourceKind(name="deliveries", function="notify", consumers=("notify-deliveries",)),
    )
}


def alarm_subjects(tenant: str, job: str) -> tuple[str, str]:
    """Where a job's alarm is set, and where it rings; one alarm per job, a new one replaces the old."""
    return f"cinevent.alarms.set.{tenant}.{job}.check", f"cinevent.alarms.due.{tenant}.{job}.check"


def delivery_subjects(tenant: str, endpoint: str, delivery: str) -> tuple[str, str]:
    """Where a delivery waits for its next try, and where it is taken from."""
    return (
        f"cinevent.webhooks.set.{tenant}.{endpoint}.{delivery}",
        f"cinevent.webhooks.due.{tenant}.{endpoint}.{delivery}",
    )


def record_subject(tenant: str, *, endpoint: str = "*", job: str = "*", delivery: str = "*") -> str:
    """Where the attempts of a delivery are written down; a filter, for what is left out."""
    return f"cinevent.deliveries.{tenant}.{endpoint}.{job}.{delivery}"


def status_subject(tenant: str, endpoint: str = "*") -> str:
    """Where the last word about a standing endpoint stands; a filter without one."""
    return f"cinevent.endpoints.status.{tenant}.{endpoint}.last"


def dead_subject(consumer: str, subject: str) -> str:
    """Where the dead letter of a message on `subject` goes."""
    tokens = subject.split(".")
    is_own = tokens[1] in ("alarms", "webhooks")
    tenant, job, event = tokens[3:6] if is_own else (tokens[1], tokens[2], "-".join(tokens[3:]))
    return f"cinevent.dead.{consumer}.{tenant}.{job}.{event}"
