"""Webhooks under faults: endpoints that misbehave by a seed, processes that are killed at random, and the ledger.

notify, its two sources and nats-server are real processes. The receiver writes down what it answered to whom: its
ledger against the events, as sets, is the oracle. For the test and, at full size, for bench/notify_faults.py.
"""

import asyncio
import contextlib
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import nats
import nats.errors
from standardwebhooks import Webhook

from engine.adapters.bus import Bus, Outgoing
from engine.contract.codec import encode_nats
from engine.contract.events import Event, subject
from engine.contract.job import derived_id
from engine.contract.settings import Settings
from tests.e2e.hooks import CONSUMERS, SECRET, endpoints_file, hook_settings
from tests.e2e.sources import in_hand
from tests.make import TENANT, an_event
from tests.servers import Child, NatsServer, child, free_port, wait_until

NUM_ENDPOINTS = 3
ENDPOINTS = tuple(f"shop-{n}" for n in range(NUM_ENDPOINTS))
FAULTS = ("500", "429", "silence", "reset", "half")
# Silence lasts as long as the sender's patience, the others no time at all.
_WEIGHTS = (6, 6, 1, 6, 6)
_ANSWERS = {
    "ok": b"HTTP/1.1 204 No Content\r\n\r\n",
    "500": b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops",
    "429": b"HTTP/1.1 429 Slow Down\r\nretry-after: 20\r\ncontent-length: 0\r\n\r\n",
    "half": b"HTTP/1.1 200 OK\r\ncontent-le",
}


@dataclass
class Ledger:
    """What the endpoints were sent and answered."""

    accepted: Counter[tuple[str, str]] = field(default_factory=Counter)
    """2xx per webhook-id and endpoint."""
    answers: Counter[str] = field(default_factory=Counter)
    num_wrong: int = 0
    """Requests with a signature that does not verify, or a body of another event."""


class Receiver:
    """Endpoints on one port, one path each; a share of all answers is a fault, by a seed."""

    def __init__(self, *, share: float, seed: int) -> None:
        self.ledger = Ledger()
        self.arrived: dict[str, float] = {}
        """When each webhook-id came last, by the monotonic clock; what a benchmark needs to know."""
        self.must_verify = True
        self._share = share
        self._random = random.Random(seed)
        self._webhook = Webhook(SECRET)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        server.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._one(reader, writer):
                pass
        writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = [line.partition(": ") for line in head.split("\r\n")[1:] if line]
        headers = {name.lower(): value for name, _, value in lines}
        body = await reader.readexactly(int(headers["content-length"]))
        answer = "ok" if self._random.random() >= self._share else self._random.choices(FAULTS, _WEIGHTS)[0]
        self._write_down(head.split(maxsplit=2)[1].strip("/"), headers, body, answer)
        if answer == "silence":
            await reader.read(1)
        if answer in _ANSWERS:
            writer.write(_ANSWERS[answer])
            await writer.drain()
        return answer in ("ok", "500", "429")

    def _write_down(self, endpoint: str, headers: dict[str, str], body: bytes, answer: str) -> None:
        self.ledger.answers[answer] += 1
        self.arrived[headers["webhook-id"]] = time.monotonic()
        if answer == "ok":
            self.ledger.accepted[headers["webhook-id"], endpoint] += 1
        if not self.must_verify:
            return
        try:
            is_wrong = self._webhook.verify(body, headers)["id"] != headers["webhook-id"]
        except Exception:
            is_wrong = True
        self.ledger.num_wrong += is_wrong


@dataclass(frozen=True)
class Outcome:
    """What a run found."""

    num_events: int
    num_kills: int
    missing: set[tuple[str, str]]
    unasked: set[tuple[str, str]]
    num_duplicates: int
    most_duplicates: int
    """Messages that were in hand when something was killed: each may come twice."""
    ledger: Ledger
    seconds: float


class Fleet:
    """nats-server, notify and its sources as processes of their own; any of them can be killed and comes back."""

    def __init__(self, folder: Path, receiver: Receiver, *, num_endpoints: int = NUM_ENDPOINTS, **over: Any) -> None:
        rows = [{"name": name, "url": f"http://127.0.0.1:{receiver.port}/{name}"} for name in ENDPOINTS[:num_endpoints]]
        self.nats = NatsServer(folder)
        self._folder = folder
        self._port = free_port()
        self.settings = replace(
            hook_settings(
                Settings(nats_url=self.nats.url, store_url=f"file:{folder / 'store'}"),
                webhook_endpoints=endpoints_file(folder / "endpoints.json", *rows),
                webhook_disable_after_s=3600.0,
                # A slow machine's good answer must not come too late: that would be a failure to the sender alone.
                webhook_timeout_s=4.0,
            ),
            **over,
        )
        self._env = {**self.settings.environ(), "K_SINK": f"http://127.0.0.1:{self._port}/"}
        self._exits: dict[str, contextlib.ExitStack] = {}
        self._children: dict[str, Child] = {}

    def __enter__(self) -> "Fleet":
        self.nats.start()
        for name in ("notify", "outcomes", "deliveries"):
            self._start(name)
        return self

    def __exit__(self, *_: object) -> None:
        for exits in self._exits.values():
            exits.close()
        self.nats.kill()

    @property
    def pids(self) -> dict[str, list[int]]:
        """The processes of each part, those that gunicorn forked included."""
        return {name: [each.process.pid, *forked(each.process.pid)] for name, each in self._children.items()}

    def kill(self, name: str) -> None:
        """kill -9, and start it again at once."""
        if name == "nats":
            self.nats.kill()
            self.nats.start()
        else:
            self._exits.pop(name).close()
            self._start(name)

    def _start(self, name: str) -> None:
        serve = ["gunicorn", "-c", "python:functions.gunicorn_conf", "--bind", f"127.0.0.1:{self._port}"]
        words = [*serve, "functions.notify.app:create_app()"] if name == "notify" else ["functions.source", name]
        self._exits[name] = exits = contextlib.ExitStack()
        log = self._folder / f"{name}.log"
        self._children[name] = exits.enter_context(child([sys.executable, "-m", *words], env=self._env, log=log))


def forked(pid: int) -> list[int]:
    """The children of a process."""
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(word) for word in words]


def outcomes(num: int, *, start: int = 0) -> Iterator[tuple[Event, Event]]:
    """Each a job of its own: that it was accepted, and how it ended."""
    for number in range(start, start + num):
        job = derived_id(TENANT, "faults", str(number))
        yield an_event("requested", job=job), an_event("cancelled", job=job)


def run(folder: Path, *, num_events: int, num_kills: int, seed: int, share: float = 0.3, timeout_s: float) -> Outcome:
    """Publish the events while things fail, wait until all is delivered, and compare the ledger."""
    begun = time.monotonic()
    chance = random.Random(seed)
    receiver = Receiver(share=share, seed=seed)
    in_flight = 0
    # With kills, the messages of a dead source are to come again soon; without, none may come again that is in hand.
    with Fleet(folder, receiver, ack_wait_s=3.0 if num_kills else 30.0) as fleet:
        bus = Bus.open(fleet.settings)
        pairs = list(outcomes(num_events))
        publish(bus, [accepted for accepted, _ in pairs])
        expected = {(ended.id, name) for _, ended in pairs for name in ENDPOINTS}
        publishing = threading.Thread(target=publish, args=(bus, [ended for _, ended in pairs]))
        publishing.start()
        for number in range(num_kills):
            # Spread over the run: each finds work under way, and what the one before broke on its way to be mended.
            share_done = 0.95 * (number + 1) / (num_kills + 1)
            wait_until(partial(_has_accepted, receiver, share_done * len(expected)), timeout_s=timeout_s)
            in_flight += sum(_in_hand(fleet.settings, place=0))
            fleet.kill(chance.choice(("notify", "outcomes", "deliveries", "nats")))
        publishing.join(timeout=timeout_s)
        wait_until(lambda: _is_complete(receiver, expected), timeout_s=timeout_s, what="every delivery arrives")
        wait_until(lambda: not sum(_in_hand(fleet.settings, place=0)), timeout_s=timeout_s, what="nothing in hand")
        bus.close()
    receiver.close()
    accepted = receiver.ledger.accepted
    return Outcome(
        num_events=num_events,
        num_kills=num_kills,
        missing=expected - set(accepted),
        unasked=set(accepted) - expected,
        num_duplicates=sum(accepted.values()) - len(accepted),
        most_duplicates=in_flight,
        ledger=receiver.ledger,
        seconds=time.monotonic() - begun,
    )


def publish(bus: Bus, events: list[Event]) -> None:
    """Publish these, fifty in one write."""
    for start in range(0, len(events), 50):
        bus.publish_all([_outgoing(event) for event in events[start : start + 50]], deadline_s=60)


def _outgoing(event: Event) -> Outgoing:
    headers, body = encode_nats(event)
    return Outgoing(subject=subject(event), headers=headers, body=body)


def _is_complete(receiver: Receiver, expected: set[tuple[str, str]]) -> bool:
    return expected <= set(receiver.ledger.accepted)


def _has_accepted(receiver: Receiver, num: float) -> bool:
    return len(receiver.ledger.accepted) >= num


def _in_hand(settings: Settings, *, place: int) -> list[int]:
    """What notify's consumers have in hand (0) or in the queue (1); waits for a server that was just killed."""
    for _ in range(100):
        try:
            return [in_hand(settings, consumer)[place] for consumer in CONSUMERS if consumer != "notify-progress"]
        except (nats.errors.Error, OSError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError("nats-server does not come back")
