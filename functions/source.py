"""The source: carries events from JetStream to a function: `python -m functions.source NAME`, to the address in K_SINK.

In: the durable consumers of one row of streams.SOURCES. Out: one POST per message, or one per batch where the consumer
takes batches. 2xx acknowledges it; delivery.py has what any other answer means. At least once: a message leaves
JetStream only after its answer, or after its dead letter is stored. What an event means, the source does not know.
"""

import argparse
import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import nats.errors

from engine.adapters.dead import CONSUMER_HEADER, REASON_HEADER, SUBJECT_HEADER, TRIES_HEADER
from engine.adapters.history import REDRIVE_HEADER
from engine.adapters.topology import connect, ensure
from engine.contract.codec import decode, encode
from engine.contract.errors import BadEvent, Invalid
from engine.contract.settings import Settings
from engine.contract.streams import CONSUMERS, SOURCES, Consumer, SourceKind, dead_subject
from functions import delivery
from functions.delivery import LINGER_S, Accepted, Answer, Dead, Gate, Hand, Letter, Paused, Rota, Turn, Waits
from functions.puller import Puller
from functions.sink import Sink, Target

_LOG = logging.getLogger(__name__)
_NATS_ERRORS = (nats.errors.Error, TimeoutError, OSError)
# How long the server may take to confirm, and how often it is asked: together longer than it takes to restart.
_CONFIRM_S = 2.0
_CONFIRM_TRIES = 12
# Between two tries of the same thing with a server that cannot do it now.
_AGAIN_S = 0.5
# Below the 30 s that Kubernetes gives a pod to end.
_FINISH_S = 25.0


def main() -> int:
    """Run a source until SIGTERM or SIGINT; returns the exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(prog="python -m functions.source", description="Carry events to K_SINK.")
    parser.add_argument("name", choices=sorted(SOURCES))
    kind = SOURCES[parser.parse_args().name]
    try:
        settings, target = Settings.read(os.environ), Target.read(os.environ)
    except Invalid as error:
        _LOG.error("%s", error)
        return 2
    asyncio.run(_until_signal(kind, settings, target))
    return 0


async def _until_signal(kind: SourceKind, settings: Settings, target: Target) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(kind, settings, target, stop=stop)


async def run(
    kind: SourceKind, settings: Settings, target: Target, *, stop: asyncio.Event, beat_s: float | None = None
) -> None:
    """Deliver until `stop` is set; then finish what is on its way, for at most 25 s, and give the rest back."""
    sink = Sink(target)
    try:
        while not stop.is_set():
            _LOG.info("connecting source=%s", kind.name)
            connecting = asyncio.create_task(connect(settings))
            await _first(stop, connecting)
            if not connecting.done():
                connecting.cancel()
                break
            client = connecting.result()
            await Source(kind, client, settings, post=sink.post, beat_s=beat_s or settings.ack_wait_s / 3).run(stop)
            # A server that is gone cannot be told goodbye.
            with suppress(*_NATS_ERRORS):
                await client.close()
    finally:
        await sink.close()


async def _first(stop: asyncio.Event, task: asyncio.Task[Any]) -> None:
    """Return when `stop` is set or `task` has ended."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, task}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()


class Source:
    """Pullers fill one hand per consumer, the scheduler empties them, and each letter on its way is a task."""

    def __init__(
        self,
        kind: SourceKind,
        client: Any,
        settings: Settings,
        *,
        post: Callable[[Sequence[Letter]], Awaitable[Answer]],
        beat_s: float,
    ) -> None:
        self._name = kind.name
        self._client = client
        self._js = client.jetstream(timeout=_CONFIRM_S)
        self._post = post
        self._settings = settings
        self._beat_s = beat_s
        self._pullers = {
            name: Puller(client, Hand(CONSUMERS[name]), take=self._take, repair=self._repair) for name in kind.consumers
        }
        self._rota = Rota(hands=[puller.hand for puller in self._pullers.values()])
        self._gate = Gate()
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._on_the_way: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set, or the client is closed for good."""
        async with asyncio.TaskGroup() as self._group:
            beating = self._group.create_task(self._heartbeat())
            working = self._group.create_task(self._work())
            await _first(stop, beating)
            self._is_stopping = True
            working.cancel()
            await self._finish()
            beating.cancel()

    async def _work(self) -> None:
        await self._ensure()
        if self._is_stopping:
            # nats-py waits in a way that can lose a cancellation (asyncio.wait_for, before Python 3.12).
            return
        _LOG.info("pulling source=%s consumers=%s", self._name, ",".join(self._pullers))
        async with asyncio.TaskGroup() as group:
            for puller in self._pullers.values():
                group.create_task(puller.run())
            group.create_task(self._schedule())

    def _take(self, hand: Hand, message: Any) -> None:
        """A message arrived: put it in line, or settle it if there is nothing to post."""
        consumer, sequence, headers = hand.consumer, message.metadata.sequence.stream, message.headers or {}
        if sequence in hand.held:
            # It came again while in hand, because no heartbeat could pass: one of the two is enough.
            return
        if self._is_stopping or not hand.num_free:
            self._spawn(_nak(message, after_s=0))
            return
        hand.hold(sequence, message)
        if headers.get(REDRIVE_HEADER, consumer.name) != consumer.name:
            self._spawn(self._settle(consumer, message, b"+ACK"))
            return
        try:
            event = decode(headers, message.data)
        except BadEvent as error:
            self._log(consumer, message, "dead reason=bad_event")
            self._spawn(self._bury(consumer, message, why=delivery.one_line(f"not an event: {error}")))
            return
        tries = message.metadata.num_delivered
        is_binary = any(name.lower() == "ce-specversion" for name in headers)
        body = encode(event)[1] if is_binary else message.data
        letter = Letter(consumer=consumer, sequence=sequence, tries=tries, event=event, body=body, message=message)
        hand.offer(letter, now=time.monotonic())
        self._wake.set()

    async def _schedule(self) -> None:
        while True:
            self._wake.clear()
            now = time.monotonic()
            wait_s = self._gate.wait_s(now)
            if not wait_s and (turn := self._rota.next(now)):
                self._gate.go(turn)
                turn.hand.num_posts += 1
                self._spawn(self._deliver(turn))
                continue
            with suppress(TimeoutError):
                # Letters that gather for a batch go after a moment, without another's coming.
                is_gathering = not wait_s and self._rota.has_more
                async with asyncio.timeout(LINGER_S if is_gathering else wait_s or None):
                    await self._wake.wait()

    async def _deliver(self, turn: Turn) -> None:
        try:
            answer = await self._post(turn.letters)
        finally:
            turn.hand.num_posts -= 1
        outcome = delivery.judge(answer, tries=1, max_tries=turn.hand.consumer.tries)
        if isinstance(outcome, Paused):
            for letter in turn.letters:
                self._log(letter.consumer, letter.message, f"paused {answer.brief} after_s={outcome.after_s:.2f}")
            await self._pause(turn, outcome)
            return
        self._gate.passed(turn)
        self._wake.set()
        if isinstance(outcome, Dead) and len(turn.letters) > 1:
            # Something in the batch is not taken: one by one, so that it takes no other along.
            turns = [replace(turn, letters=[letter]) for letter in turn.letters]
            turn.hand.num_posts += len(turns)
            await asyncio.gather(*(self._deliver(each) for each in turns))
        elif isinstance(outcome, Accepted):
            await self._settle_all(turn.letters)
        else:
            await asyncio.gather(*(self._finish_letter(letter, answer) for letter in turn.letters))

    async def _settle_all(self, letters: Sequence[Letter]) -> None:
        """Acknowledge letters that went together; the server takes words in order, so the last one is the proof."""
        *before, last = [letter.message for letter in letters]
        try:
            for message in before:
                await self._client.publish(message.reply, b"+ACK")
            await self._client.request(last.reply, b"+ACK", timeout=_CONFIRM_S)
        except _NATS_ERRORS:
            await asyncio.gather(*(self._settle(each.consumer, each.message, b"+ACK") for each in letters))
        else:
            for each in letters:
                self._release(each.consumer, each.message)

    async def _finish_letter(self, letter: Letter, answer: Answer) -> None:
        """Do what an answer that is no 429 means for one letter."""
        consumer, message = letter.consumer, letter.message
        match delivery.judge(answer, tries=letter.tries, max_tries=consumer.tries):
            case Accepted():
                await self._settle(consumer, message, b"+ACK")
            case Waits(after_s=after_s):
                self._log(consumer, message, f"waits {answer.brief} after_s={after_s:.2f}")
                await self._give_back(consumer, message, after_s=after_s)
            case Dead(why=why):
                self._log(consumer, message, f"dead {answer.brief}")
                await self._bury(consumer, message, why=why)

    async def _pause(self, turn: Turn, outcome: Paused) -> None:
        if self._is_stopping:
            await self._give_all_back(turn)
            return
        self._gate.shut(time.monotonic() + outcome.after_s)
        self._rota.undo(turn)
        self._wake.set()

    async def _give_all_back(self, turn: Turn) -> None:
        for letter in turn.letters:
            await self._give_back(letter.consumer, letter.message, after_s=0)

    async def _bury(self, consumer: Consumer, message: Any, *, why: str) -> None:
        """Store the dead letter, then end the message: in this order it is never in neither place."""
        sequence, tries = message.metadata.sequence.stream, message.metadata.num_delivered
        facts = {
            "Nats-Msg-Id": f"{consumer.stream}:{consumer.name}:{sequence}",
            REASON_HEADER: why,
            TRIES_HEADER: str(tries),
            SUBJECT_HEADER: message.subject,
            CONSUMER_HEADER: consumer.name,
        }
        headers, body = delivery.dead_letter(
            message.headers or {}, message.data, facts, max_bytes=self._client.max_payload
        )
        try:
            await self._js.publish(dead_subject(consumer.name, message.subject), body, headers=headers)
        except _NATS_ERRORS as error:
            await self._repair(f"no dead letter could be stored: {delivery.one_line(str(error))}")
            await self._give_back(consumer, message, after_s=delivery.backoff_s(tries))
        else:
            await self._settle(consumer, message, b"+TERM")

    async def _settle(self, consumer: Consumer, message: Any, verb: bytes) -> None:
        """Tell the server until it confirms: a word lost here would deliver the event a second time."""
        for _ in range(_CONFIRM_TRIES):
            try:
                await self._client.request(message.reply, verb, timeout=_CONFIRM_S)
                break
            except _NATS_ERRORS:
                await asyncio.sleep(_AGAIN_S)
        else:
            self._log(consumer, message, f"unconfirmed verb={verb.decode()}")
        self._release(consumer, message)

    async def _give_back(self, consumer: Consumer, message: Any, *, after_s: float) -> None:
        await _nak(message, after_s=after_s)
        self._release(consumer, message)

    def _release(self, consumer: Consumer, message: Any) -> None:
        self._pullers[consumer.name].release(message.metadata.sequence.stream)

    async def _heartbeat(self) -> None:
        """Keep what is in hand ours, however long that takes; ends when nats-py has given up its connection.

        It never does for a server that is away, but it does for one that sends it away, as when credentials expire.
        """
        while not self._client.is_closed:
            await asyncio.sleep(self._beat_s)
            for message in [message for hand in self._rota.hands for message in hand.held.values()]:
                # Not while the server is away: nats-py would store them up.
                if self._client.is_connected:
                    with suppress(*_NATS_ERRORS):
                        await message.in_progress()

    async def _repair(self, why: str) -> None:
        """Say why the server does not serve us, and put right what we can: make what is missing."""
        _LOG.warning("refused source=%s why=%s", self._name, why)
        await asyncio.sleep(_AGAIN_S)
        await self._ensure()

    async def _ensure(self) -> None:
        with suppress(*_NATS_ERRORS):
            await ensure(self._js, self._settings)

    async def _finish(self) -> None:
        """Take nothing more, give back what was not posted, and wait for the answers that are due."""
        end = asyncio.get_running_loop().time() + _FINISH_S
        await asyncio.gather(*(puller.close() for puller in self._pullers.values()))
        while turn := self._rota.next():
            self._spawn(self._give_all_back(turn))
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while self._on_the_way:
                    await asyncio.wait(set(self._on_the_way))
        for task in self._on_the_way:
            # Posted, but not answered in time: it is delivered again once nobody sends heartbeats for it.
            task.cancel()
        with suppress(*_NATS_ERRORS):
            await self._client.flush(2)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work)
        self._on_the_way.add(task)
        task.add_done_callback(self._on_the_way.discard)

    def _log(self, consumer: Consumer, message: Any, what: str) -> None:
        place = message.metadata
        _LOG.warning(
            "%s source=%s consumer=%s subject=%s sequence=%d tries=%d",
            *(what, self._name, consumer.name, message.subject, place.sequence.stream, place.num_delivered),
        )


async def _nak(message: Any, *, after_s: float) -> None:
    # If this word is lost the message comes back all the same, after its ack wait.
    with suppress(*_NATS_ERRORS):
        await message.nak(delay=after_s)


if __name__ == "__main__":
    raise SystemExit(main())
