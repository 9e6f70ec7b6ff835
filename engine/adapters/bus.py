"""JetStream behind a synchronous face: publish, alarms, reads, live events. Beside the source, the only file with nats.

A Bus owns one event-loop thread, the only asyncio of this side. It connects in the background, makes the streams and
consumers of contract/streams.py, and stays: after a loss of the server it goes on by itself. Every call has a deadline;
what it could not do by then is Unavailable. nats-py's `publish_async` is not used: its futures hang after a loss.
"""

import asyncio
import itertools
import json
import logging
import queue
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from engine.adapters.topology import connect, differences, ensure
from engine.contract.codec import decode, encode_nats
from engine.contract.errors import BadEvent, Conflict, NotFound, Unavailable
from engine.contract.events import Event, subject
from engine.contract.schemas import validate
from engine.contract.settings import Settings
from engine.contract.streams import Consumer

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

_WRONG_LAST_SEQUENCE = 10071
# The server takes up to 1000 messages in one batch; half of that stays well below its time limit on a slow disk.
_WRITE_BATCH = 500
# One attempt of a request: long enough for a synced write on a slow disk, short enough to be tried again in a second.
_ATTEMPT_S = 2.0
_RETRY_AFTER_S = 2.0
# The server refuses a batched read of more subjects than this (nats-server, direct get).
_READ_BATCH = 1000
_FIRST_TIME, _LAST_TIME = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
# Live events that a slow reader may be behind; beyond it the oldest are dropped, the log still has them.
_LISTEN_LIMIT = 10_000
# What is still on its way when the bus is closed gets so long to notice.
_CLOSE_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """A message as it stands in a stream."""

    subject: str
    sequence: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Since:
    """Messages from some point on: how many, and the first."""

    count: int
    first: Message | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answers:
    """What has come of a read; `whole` is its last word."""

    messages: list[Message]
    whole: "asyncio.Future[dict[str, str]]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outgoing:
    """A message to be published."""

    subject: str
    headers: dict[str, str]
    body: bytes


def scheduled(event: Event, *, set_on: str, due_on: str, when: datetime) -> Outgoing:
    """The message that has JetStream publish `event` on `due_on` at `when`; one on the same `set_on` replaces it."""
    headers, body = encode_nats(event)
    # A replaced alarm has the same event id and must not be taken for a duplicate.
    del headers["Nats-Msg-Id"]
    schedule = {"Nats-Schedule": f"@at {_rfc3339(when)}", "Nats-Schedule-Target": due_on}
    return Outgoing(subject=set_on, headers={**headers, **schedule}, body=body)


class Bus:
    """One connection to NATS, to be used from any thread."""

    def __init__(self, settings: Settings, *, is_client: bool = False) -> None:
        self._settings = settings
        self._is_client = is_client
        self._loop = asyncio.new_event_loop()
        self._connected = asyncio.Event()
        self._nc: Any = None
        # One subscription for the answers to all reads: making one for each costs more than the read.
        self._inbox = ""
        self._answers: dict[str, _Answers] = {}
        self._tokens = itertools.count()
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)
        self._thread.start()
        self._connecting = asyncio.run_coroutine_threadsafe(self._connect(), self._loop)

    @classmethod
    def open(cls, settings: Settings, *, is_client: bool = False) -> "Bus":
        """A bus that connects in the background; the first call waits for it, up to its own deadline.

        A client only uses what is there: it makes no streams.
        """
        return cls(settings, is_client=is_client)

    def close(self) -> None:
        """Send what is buffered and disconnect; at most 3 s."""
        self._connecting.cancel()
        # A server that is gone cannot be told goodbye.
        with suppress(*_nats_errors()):
            asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result(timeout=3)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=3)

    def ping(self) -> None:
        """Raise Unavailable unless JetStream answers within half a second."""
        # A lambda: there is no self._js before the connection is up.
        self._call(lambda: self._js.account_info(), deadline_s=0.5)  # noqa: PLW0108

    def server(self) -> str:
        """The server's version and address, if its JetStream answers. Raises Unavailable."""

        from nats.js.errors import ServiceUnavailableError

        address = _without_password(self._settings.nats_url)

        async def ask() -> str:
            try:
                await self._js.account_info()
            except ServiceUnavailableError as error:
                message = f"{address} answers, but its JetStream is off"
                raise Unavailable(message, retry_after_s=_RETRY_AFTER_S) from error
            return f"nats-server {self._nc.connected_server_version} at {address}"

        return self._call(ask, deadline_s=2.0)

    def topology_problems(self) -> list[str]:
        """In what the streams and consumers are not as contract/streams.py says. Raises Unavailable."""
        return self._call(lambda: differences(self._js, self._settings), deadline_s=5.0)

    def publish(
        self,
        event: Event,
        *,
        first: str | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float = 5.0,
    ) -> int:
        """Put a job event into the log; returns its stream sequence once the server has it.

        `first`: a subject filter on which nothing may stand yet; Conflict if something does. A write whose answer was
        lost is sent again under the same id, so it is in the log once. Raises BadEvent, Conflict, Unavailable.
        """
        own, body = encode_nats(validate(event))
        sent = {**own, **(headers or {})}
        if first:
            sent |= {
                "Nats-Expected-Last-Subject-Sequence": "0",
                "Nats-Expected-Last-Subject-Sequence-Subject": first,
            }
        try:
            return self.publish_bytes(subject(event), sent, body, deadline_s=deadline_s)
        except Conflict:
            # Our own earlier try may be what came first: its answer was lost, and the server checks order before ids.
            assert first is not None
            stored = self.last("CINEVENT_JOBS", [first])
            if stored and stored[-1].body == body:
                return stored[-1].sequence
            raise

    def publish_bytes(self, to: str, headers: dict[str, str], body: bytes, *, deadline_s: float = 5.0) -> int:
        """Publish these bytes, awaited; returns the stream sequence. Raises Conflict, Unavailable."""

        async def send() -> int:
            ack = await self._js.publish(to, body, headers=dict(headers), timeout=_ATTEMPT_S)
            return int(ack.seq)

        return self._call(send, deadline_s=deadline_s)

    def publish_at(self, event: Event, *, set_on: str, due_on: str, when: datetime) -> None:
        """Have JetStream publish `event` on `due_on` at `when`; a later call with the same `set_on` replaces it."""
        alarm = scheduled(validate(event), set_on=set_on, due_on=due_on, when=when)
        self.publish_bytes(alarm.subject, alarm.headers, alarm.body)

    def publish_all(self, messages: Sequence[Outgoing], *, deadline_s: float = 10.0) -> None:
        """Publish messages of ONE stream, many in one synced write; return once the server has them all.

        A write whose answer was lost is sent again: without a Nats-Msg-Id a message may then stand twice. Raises
        Unavailable.
        """
        for start in range(0, len(messages), _WRITE_BATCH):
            chunk = messages[start : start + _WRITE_BATCH]
            self._call(partial(self._publish_chunk, chunk), deadline_s=deadline_s)

    def last(self, stream: str, filters: Sequence[str], *, deadline_s: float = 5.0) -> list[Message]:
        """The last message of every subject that matches one of `filters`, in stream order."""
        return self._call(lambda: self._direct(stream, {"multi_last": list(filters)}), deadline_s=deadline_s)

    def last_of_each(
        self, streams: Sequence[str], filters: Sequence[str], *, deadline_s: float = 5.0
    ) -> list[list[Message]]:
        """The same of several streams, read at the same time."""
        query = {"multi_last": list(filters)}

        async def ask() -> list[list[Message]]:
            return list(await asyncio.gather(*(self._direct(stream, query) for stream in streams)))

        return self._call(ask, deadline_s=deadline_s)

    def read(self, stream: str, *, matching: str, after: int = 0, limit: int = _READ_BATCH) -> list[Message]:
        """Up to `limit` messages on subjects that match, the oldest first, with a sequence above `after`."""
        query = {"seq": after + 1, "batch": min(limit, _READ_BATCH), "next_by_subj": matching}
        return self._call(lambda: self._direct(stream, query), deadline_s=5.0)

    def bounds(self, stream: str) -> tuple[int, int]:
        """First and last sequence of a stream; the last is below the first while it is empty."""

        async def ask() -> tuple[int, int]:
            state = (await self._js.stream_info(stream)).state
            return int(state.first_seq), int(state.last_seq)

        return self._call(ask, deadline_s=5.0)

    def since(
        self, stream: str, matching: str, *, seconds: float = 0, after: int = 0, deadline_s: float = 5.0
    ) -> "Since":
        """How many messages on subjects that match came in the last `seconds`, or have a sequence above `after`."""
        where: dict[str, Any] = {"seq": after + 1}
        if seconds:
            where = {"start_time": _rfc3339(datetime.now(UTC) - timedelta(seconds=seconds))}
        query = {**where, "batch": 1, "next_by_subj": matching}
        found = self._call(lambda: self._direct(stream, query), deadline_s=deadline_s)
        if not found:
            return Since(count=0, first=None)
        return Since(count=1 + int(found[0].headers["Nats-Num-Pending"]), first=found[0])

    def sequence_at(self, stream: str, when: datetime) -> int:
        """The sequence of the first message since `when`, or the one that the next message will have."""
        query = {"start_time": _rfc3339(when), "batch": 1, "next_by_subj": ">"}
        found = self._call(lambda: self._direct(stream, query), deadline_s=5.0)
        return found[0].sequence if found else self.bounds(stream)[1] + 1

    def subjects(self, stream: str, matching: str, *, deadline_s: float = 5.0) -> list[str]:
        """All subjects of a stream that match and have a message."""

        async def ask() -> list[str]:
            return list((await self._js.stream_info(stream, subjects_filter=matching)).state.subjects or ())

        return self._call(ask, deadline_s=deadline_s)

    def acknowledged(self, consumer: Consumer) -> int:
        """The stream sequence up to which this consumer has no message left to deliver or to wait for."""

        async def ask() -> int:
            return int((await self._js.consumer_info(consumer.stream, consumer.name)).ack_floor.stream_seq)

        return self._call(ask, deadline_s=5.0)

    def purge(self, stream: str, matching: str) -> None:
        """Remove every message on subjects that match; an alarm that was set there does not ring."""
        self._call(lambda: self._js.purge_stream(stream, subject=matching), deadline_s=5.0)

    def delete(self, stream: str, sequence: int) -> None:
        """Remove one message. Raises NotFound."""
        self._call(lambda: self._js.delete_msg(stream, sequence), deadline_s=5.0)

    @contextmanager
    def listen(self, matching: str) -> Iterator[Callable[[float], Event | None]]:
        """Live events on subjects that match, from now on: `next_event(timeout_s)` gives one, or None in time."""
        events: queue.Queue[Event] = queue.Queue(maxsize=_LISTEN_LIMIT)

        async def take(message: Any) -> None:
            with suppress(BadEvent):
                while events.full():
                    events.get_nowait()
                events.put_nowait(decode(message.headers or {}, message.data))

        async def subscribe() -> Any:
            subscription = await self._nc.subscribe(matching, cb=take)
            # Flushed: the caller may rely on seeing whatever happens after `listen` began.
            await self._nc.flush(2)
            return subscription

        def next_event(timeout_s: float) -> Event | None:
            try:
                return events.get(timeout=timeout_s)
            except queue.Empty:
                return None

        subscription = self._call(subscribe, deadline_s=5.0)
        try:
            yield next_event
        finally:
            with suppress(Unavailable):
                self._call(subscription.unsubscribe, deadline_s=1.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        # In rounds: a connection that was being made may start tasks of its own before it notices.
        end = self._loop.time() + _CLOSE_S
        while (left := asyncio.all_tasks(self._loop)) and self._loop.time() < end:
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(left, timeout=_CLOSE_S / 10))
        self._loop.close()

    async def _connect(self) -> None:
        """Be connected until cancelled."""
        while True:
            closed = asyncio.Event()
            self._nc = await connect(self._settings, connected=self._connected, closed=closed)
            self._js = self._nc.jetstream(timeout=_ATTEMPT_S)
            self._inbox = self._nc.new_inbox()
            await self._nc.subscribe(f"{self._inbox}.*", cb=self._take_answer)
            while not (self._connected.is_set() or closed.is_set()):
                try:
                    await self._ensure()
                    self._connected.set()
                except _nats_errors():
                    await asyncio.sleep(0.5)
            await closed.wait()
            self._connected.clear()

    async def _ensure(self) -> None:
        if not self._is_client:
            await ensure(self._js, self._settings)

    async def _disconnect(self) -> None:
        if self._nc is not None:
            await self._nc.close()

    def _call(self, operation: Callable[[], Awaitable[T]], *, deadline_s: float) -> T:
        """Run `operation` on the loop until it succeeds, is refused for good, or the deadline passes."""
        end = time.monotonic() + deadline_s

        async def attempts() -> T:
            while True:
                try:
                    async with asyncio.timeout_at(self._loop.time() + max(0.0, end - time.monotonic())):
                        await self._connected.wait()
                        return await operation()
                except _nats_errors() as error:
                    await self._judge(error)
                    if time.monotonic() + 0.1 >= end:
                        address = _without_password(self._settings.nats_url)
                        reason = str(error) or f"no answer from {address} in {deadline_s:g} s"
                        raise Unavailable(f"NATS does not answer: {reason}", retry_after_s=_RETRY_AFTER_S) from error
                    await asyncio.sleep(0.1)

        future = asyncio.run_coroutine_threadsafe(attempts(), self._loop)
        try:
            # The coroutine ends by itself at the deadline; the second is for a loop that is busy.
            return future.result(timeout=deadline_s + 1.0)
        except CancelledError as error:
            raise Unavailable("the bus was closed meanwhile", retry_after_s=_RETRY_AFTER_S) from error
        except TimeoutError as error:
            future.cancel()
            raise Unavailable("NATS does not answer", retry_after_s=_RETRY_AFTER_S) from error

    async def _judge(self, error: BaseException) -> None:
        """Raise what no further try will change; put right what one may."""
        from nats.js.errors import NoStreamResponseError, NotFoundError

        if getattr(error, "err_code", None) == _WRONG_LAST_SEQUENCE:
            raise Conflict(str(error)) from error
        if isinstance(error, NoStreamResponseError):
            # The server came back without its data: make the streams again.
            with suppress(*_nats_errors()):
                await self._ensure()
        elif isinstance(error, NotFoundError):
            raise NotFound(str(error)) from error

    async def _publish_chunk(self, messages: Sequence[Outgoing]) -> None:
        """One atomic batch (NATS ADR-50); one by one, where the server does not take them together.

        It does not if it has one of them already, or if two are for one alarm; and it has an upper limit of batches.
        """
        if len(messages) > 1 and await self._published_atomically(messages):
            return
        for message in messages:
            await self._js.publish(message.subject, message.body, headers=dict(message.headers), timeout=_ATTEMPT_S)

    async def _published_atomically(self, messages: Sequence[Outgoing]) -> bool:
        from nats.errors import NoRespondersError
        from nats.js.errors import NoStreamResponseError

        batch, last = uuid4().hex, len(messages)
        for number, message in enumerate(messages, start=1):
            headers = {**message.headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            if number < last:
                await self._nc.publish(message.subject, message.body, headers=headers)
        headers["Nats-Batch-Commit"] = "1"
        try:
            reply = await self._nc.request(message.subject, message.body, _ATTEMPT_S, headers=headers)
        except NoRespondersError as error:
            raise NoStreamResponseError from error
        refusal = json.loads(reply.data).get("error")
        if refusal:
            _LOG.debug("a batch was refused: %s", refusal)
        return refusal is None

    async def _direct(self, stream: str, query: dict[str, Any]) -> list[Message]:
        """One batched direct get (NATS ADR-31): the answers come as messages, the last one has a status."""
        token = str(next(self._tokens))
        answers = _Answers(messages=[], whole=self._loop.create_future())
        self._answers[token] = answers
        try:
            reply = f"{self._inbox}.{token}"
            await self._nc.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(query).encode(), reply=reply)
            status = await asyncio.wait_for(answers.whole, _ATTEMPT_S)
        finally:
            del self._answers[token]
        if status["Status"] not in ("204", "404"):
            raise Unavailable(f"{stream} cannot be read: {status}", retry_after_s=_RETRY_AFTER_S)
        return answers.messages

    async def _take_answer(self, answer: Any) -> None:
        """Sort one answer to its question; late ones have none any more."""
        answers = self._answers.get(answer.subject.rpartition(".")[2])
        if answers is None or answers.whole.done():
            return
        headers = {str(name): value for name, value in (answer.headers or {}).items()}
        if "Status" in headers:
            answers.whole.set_result(headers)
        else:
            answers.messages.append(_message(answer, headers))


def _rfc3339(when: datetime) -> str:
    # Not strftime, which writes the year 8 as "8"; and the server counts nanoseconds since 1970 in 64 bits.
    within = min(max(when.astimezone(UTC), _FIRST_TIME), _LAST_TIME)
    return within.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _without_password(urls: str) -> str:
    # Whoever reads an error need not know it.
    return re.sub(r"//[^@/,]*@", "//***@", urls)


def _message(answer: Any, headers: dict[str, str]) -> Message:
    sequence = int(headers["Nats-Sequence"])
    return Message(subject=headers["Nats-Subject"], sequence=sequence, headers=headers, body=answer.data)


def _nats_errors() -> tuple[type[BaseException], ...]:
    import nats.errors

    return (nats.errors.Error, TimeoutError, OSError)
