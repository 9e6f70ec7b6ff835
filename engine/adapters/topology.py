"""How a process meets NATS: the connection's options, and the streams and consumers of contract/streams.py.

Coroutines, for the two that run a loop: bus.py and functions/source.py. `ensure` may run in many processes at once.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from engine.contract.settings import Settings
from engine.contract.streams import CONSUMERS, STREAMS, Consumer, Stream

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

_LOG = logging.getLogger(__name__)
_NAME_IN_USE = 10058


async def connect(
    settings: Settings, *, connected: asyncio.Event | None = None, closed: asyncio.Event | None = None
) -> "Client":
    """A connection that never gives up: it waits for a server that is not there yet, and for one that went away.

    `connected` is cleared when the connection is lost and set when it is back; setting it first is the caller's.
    `closed` is set when the connection is over for good: the server sent it away, as when credentials expire.
    """
    import nats

    async def lost() -> None:
        if connected:
            connected.clear()

    async def back() -> None:
        if connected:
            connected.set()

    async def over() -> None:
        if closed:
            closed.set()

    async def complain(error: Exception) -> None:
        _LOG.debug("nats: %s", error)

    return await nats.connect(
        servers=settings.nats_url.split(","),
        user_credentials=settings.nats_creds or None,
        nkeys_seed=settings.nats_nkey or None,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.25,
        connect_timeout=2,
        ping_interval=10,
        max_outstanding_pings=2,
        disconnected_cb=lost,
        reconnected_cb=back,
        closed_cb=over,
        error_cb=complain,
    )


async def ensure(js: "JetStreamContext", settings: Settings) -> None:
    """Make every stream and durable consumer as the tables say; those that are already so stay untouched."""
    for stream in STREAMS:
        await _ensure_stream(js, stream, settings.nats_replicas)
    for consumer in CONSUMERS.values():
        await js.add_consumer(consumer.stream, consumer_config(consumer, ack_wait_s=settings.ack_wait_s))


async def _ensure_stream(js: "JetStreamContext", stream: Stream, replicas: int) -> None:
    from nats.js.errors import BadRequestError

    config = stream_config(stream, replicas)
    try:
        await js.add_stream(config)
    except BadRequestError as error:
        if error.err_code != _NAME_IN_USE:
            raise
        await js.update_stream(config)


async def differences(js: "JetStreamContext", settings: Settings) -> list[str]:
    """What `ensure` would have to do: streams and consumers that are missing, or in which fields they differ."""
    from nats.js.errors import NotFoundError

    found: list[str] = []
    for stream in STREAMS:
        try:
            there = (await js.stream_info(stream.name)).config
        except NotFoundError:
            found.append(f"stream {stream.name} is missing")
        else:
            found += _differences(f"stream {stream.name}", there, stream_config(stream, settings.nats_replicas))
    for consumer in CONSUMERS.values():
        try:
            there = (await js.consumer_info(consumer.stream, consumer.name)).config
        except NotFoundError:
            found.append(f"consumer {consumer.name} of {consumer.stream} is missing")
        else:
            wanted = consumer_config(consumer, ack_wait_s=settings.ack_wait_s)
            found += _differences(f"consumer {consumer.name}", there, wanted)
    return found


def _differences(name: str, there: Any, wanted: Any) -> list[str]:
    # What is not set is the server's to choose.
    ours = {field: value for field, value in vars(wanted).items() if value != getattr(type(wanted)(), field)}
    return [
        f"{name}: {field} is {getattr(there, field)}, not {value}"
        for field, value in ours.items()
        if getattr(there, field) != value
    ]


def stream_config(stream: Stream, replicas: int) -> Any:
    """The row as nats-py wants it."""
    from nats.js.api import RetentionPolicy, StorageType, StreamConfig

    return StreamConfig(
        name=stream.name,
        subjects=list(stream.subjects),
        retention=RetentionPolicy.WORK_QUEUE if stream.work_queue else RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        max_age=stream.max_age_s,
        max_msgs_per_subject=stream.max_per_subject,
        duplicate_window=stream.duplicate_window_s,
        # Many messages in one synced write (NATS ADR-50).
        allow_atomic=True,
        num_replicas=replicas,
        allow_direct=True,
        allow_msg_schedules=stream.schedules or None,
        # Schedules bring time-to-live with them: the server switches it on, and a config without it would differ.
        allow_msg_ttl=stream.schedules or None,
    )


def consumer_config(consumer: Consumer, *, ack_wait_s: float) -> Any:
    """The row as nats-py wants it."""
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

    return ConsumerConfig(
        durable_name=consumer.name,
        filter_subject=consumer.filter,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        # The source counts and writes the dead letter first; a limit of the server's would drop the message silently.
        max_deliver=-1,
        # More than the slots: a message that waits for its next try (nak with a delay) still counts as pending, and
        # the jobs of a tenant at its limit must not keep those of others from being delivered.
        max_ack_pending=20_000,
    )
