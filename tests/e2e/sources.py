"""What the tests of sources and webhooks share: sources in a thread or a process, a look at consumers, raw HTTP."""

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import nats

from engine.adapters.bus import Bus, Message
from engine.adapters.dead import STREAM as DEAD
from engine.contract.events import Event
from engine.contract.job import derived_id
from engine.contract.settings import Settings
from engine.contract.streams import CONSUMERS, SOURCES
from functions.sink import Target
from functions.source import run
from tests.make import TENANT, a_request, an_event
from tests.servers import Child, Received, Sink, child

T = TypeVar("T")
NOTHING = (0, 0)
"""What `in_hand` says of a consumer that has no work."""


@contextlib.contextmanager
def source_thread(name: str, settings: Settings, url: str, *, beat_s: float = 10.0, **over: Any) -> Iterator[None]:
    """A source in this process, with the fields `over` of its target; it has ended afterwards."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop))
        await run(SOURCES[name], settings, Target(url=url, **over), stop=stop, beat_s=beat_s)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    loop, stop = started.result(timeout=5)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=30)
        assert not thread.is_alive()


@contextlib.contextmanager
def source_process(name: str, nats_url: str, sink_url: str, *, log: Path) -> Iterator[Child]:
    """The real thing."""
    arguments = [sys.executable, "-m", "functions.source", name]
    with child(arguments, env={"CINEVENT_NATS_URL": nats_url, "K_SINK": sink_url}, log=log) as process:
        yield process


def in_hand(settings: Settings, consumer: str) -> tuple[int, int]:
    """Messages of a consumer that were delivered but not settled, and those not yet delivered."""
    row = CONSUMERS[consumer]

    async def ask(js: Any) -> tuple[int, int]:
        info = await js.consumer_info(row.stream, row.name)
        return info.num_ack_pending, info.num_pending

    return with_jetstream(settings, ask)


def with_jetstream(settings: Settings, ask: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """What `ask` finds out over a connection of its own."""

    async def connected() -> T:
        client = await nats.connect(settings.nats_url)
        try:
            return await ask(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(connected())


@contextlib.contextmanager
def raw_server(
    serve: Callable[[socket.socket, bytes], None], *, wrap: Callable[..., socket.socket] | None = None
) -> Iterator[str]:
    """The address of a server that reads one request per connection, lets `serve` do as it likes, and hangs up.

    `wrap` puts TLS on a connection.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, _wrapped(connection, wrap) as speaking:
            serve(speaking, _request(speaking))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def cancel(number: int) -> Event:
    """The wish to cancel a job of its own."""
    return an_event("cancel", job=derived_id(TENANT, "test", str(number)))


def done(number: int) -> Event:
    """The outcome of a job of its own."""
    return an_event("cancelled", job=derived_id(TENANT, "test", str(number)))


def requested(number: int, priority: str) -> Event:
    """A request of a job of its own."""
    job = derived_id(TENANT, priority, str(number))
    return an_event("requested", job=job, request=a_request(priority=priority).to_json())


def publish(bus: Bus, *events: Event) -> list[str]:
    """Publish these; returns their ids."""
    for event in events:
        bus.publish(event)
    return [event.id for event in events]


def ids(sink: Sink) -> list[str]:
    """The events that the sink got, in order."""
    return [request.headers["ce-id"] for request in sink.received]


def in_turn(*answers: tuple[int, dict[str, str]]) -> Callable[[Received], tuple[int, dict[str, str]]]:
    """These answers one after the other, whoever asks; the last one for ever."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def the_dead(bus: Bus) -> list[Message]:
    """The dead letters as they are stored."""
    return bus.read(DEAD, matching="cinevent.dead.>")


def _wrapped(connection: socket.socket, wrap: Callable[..., socket.socket] | None) -> socket.socket:
    return wrap(connection, server_side=True) if wrap else connection


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0].split(b":")[1]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
