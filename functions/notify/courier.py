"""The courier: sends a batch of deliveries at once, each endpoint in its lane, and waits for none longer than it may.

In: deliveries with their endpoints. Out, for each: what the endpoint said, or when to come again, or that it is slow
and goes on beside us; what a slow one says in the end is handed to `late`. The one event loop of notify is here.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from engine.contract.address import Policy
from engine.contract.delivery import Delivery, Said
from engine.contract.endpoint import Endpoint
from functions.guard import Lookup, open_session
from functions.notify.lane import Lane
from functions.notify.send import Sender

_LOG = logging.getLogger(__name__)
# Attempts that nobody waits for any more, over all endpoints; beyond it a batch waits for its slow ones.
_SLOW_MAX = 1000
# Lanes that are kept; the one that was used longest ago is forgotten.
_LANES_MAX = 10_000
# An endpoint's consent is good for this long.
_CONSENT_S = 3600.0
# Jobs and endpoints whose news are told apart by age: more than run at the same time.
_NEWS_MAX = 10_000
# News of progress waits this long for the news before it to arrive.
_AGAIN_S = 1.0
_CLOSE_S = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """A delivery and where it goes."""

    delivery: Delivery
    endpoint: Endpoint
    sequence: int = 0
    """Of news of progress: the greater one is the newer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comeback:
    """It was not sent; it is to come again after this time."""

    after_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Slow:
    """It is being sent, and that takes long."""


Result = Said | Comeback | Slow


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What the courier works under."""

    policy: Policy
    signing_keys: Sequence[object]
    origin: str
    timeout_s: float
    patience_s: float
    time_scale: float
    lookup: Lookup | None = None


class Courier:
    """Owns one event-loop thread with its HTTP session; `carry` may be called from any thread."""

    def __init__(self, terms: Terms, *, late: Callable[[list[tuple[Parcel, Said]]], None]) -> None:
        self._terms = terms
        self._late = late
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._places: dict[tuple[str, str], asyncio.Semaphore] = {}
        self._consents: dict[tuple[str, str], tuple[float, str]] = {}
        self._progress: dict[tuple[str, str, str], asyncio.Event] = {}
        """Set once news of a job's progress have arrived at an endpoint, or have not."""
        self._newest: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        """The sequence of the newest news of a job that was sent to an endpoint."""
        self._slow: set[asyncio.Task[Said | Comeback]] = set()
        self._telling = threading.Lock()
        self._to_tell: list[tuple[Parcel, Said]] = []
        # One: while it writes, what else arrives late gathers for the next write.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="late")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def carry(self, parcels: Sequence[Parcel]) -> list[Result]:
        """Send all of them; the results are in their order."""
        future = asyncio.run_coroutine_threadsafe(self._carry(parcels), self._loop)
        return future.result(timeout=self._terms.timeout_s + self._terms.patience_s + _CLOSE_S)

    def num_failures(self, endpoint: Endpoint) -> int:
        """How often in a row the endpoint has failed, as far as this process knows."""
        lane = self._lanes.get(_key(endpoint))
        return lane.num_failures if lane else 0

    def close(self) -> None:
        """Wait for the slow ones, whose time is limited, and end."""
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(timeout=_CLOSE_S)
        self._threads.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=3)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open())
        self._loop.run_forever()
        self._loop.close()

    async def _open(self) -> None:
        # An answer with more headers than this is no answer.
        self._session = open_session(self._terms.policy, lookup=self._terms.lookup, max_field_size=4096)
        self._sender = Sender(
            self._session,
            policy=self._terms.policy,
            signing_keys=self._terms.signing_keys,
            origin=self._terms.origin,
            timeout_s=self._terms.timeout_s,
        )

    async def _finish(self) -> None:
        while self._slow:
            await asyncio.wait(set(self._slow))
            # The callbacks of what ended run in the next turn of the loop.
            await asyncio.sleep(0)
        await self._session.close()

    async def _carry(self, parcels: Sequence[Parcel]) -> list[Result]:
        trips = [_Trip(parcel) for parcel in parcels]
        tasks = [asyncio.create_task(self._travel(trip)) for trip in trips]
        patience_s = self._patience_s(parcels)
        _, pending = await asyncio.wait(tasks, timeout=patience_s)
        if pending and len(self._slow) + len(pending) > _SLOW_MAX:
            await asyncio.wait(pending)
        return [self._result(trip, task) for trip, task in zip(trips, tasks, strict=True)]

    def _patience_s(self, parcels: Sequence[Parcel]) -> float:
        lanes = Counter(_key(parcel.endpoint) for parcel in parcels)
        endpoints = {_key(parcel.endpoint): parcel.endpoint for parcel in parcels}
        most_s = self._terms.patience_s
        return max(self._lane(endpoints[key]).patience_s(num, most_s=most_s) for key, num in lanes.items())

    def _result(self, trip: "_Trip", task: "asyncio.Task[Said | Comeback]") -> Result:
        if task.done():
            return task.result()
        lane = self._lane(trip.parcel.endpoint)
        if not trip.is_under_way:
            task.cancel()
            return Comeback(after_s=lane.queue_s(time.monotonic()))
        lane.num_slow += 1
        self._slow.add(task)
        task.add_done_callback(lambda ended: self._arrived_late(trip, lane, ended))
        return Slow()

    def _arrived_late(self, trip: "_Trip", lane: Lane, ended: "asyncio.Task[Said | Comeback]") -> None:
        lane.num_slow -= 1
        self._slow.discard(ended)
        said = ended.result()
        # What follows from it is written to the log, which waits: not in this loop.
        if isinstance(said, Said):
            with self._telling:
                self._to_tell.append((trip.parcel, said))
                if len(self._to_tell) == 1:
                    self._threads.submit(self._tell)

    def _tell(self) -> None:
        """Hand over all that arrived late since the last time: one write is for many."""
        with self._telling:
            told, self._to_tell = self._to_tell, []
        try:
            self._late(told)
        except Exception:
            # The top of a thread. Their alarms bring the deliveries again.
            _LOG.exception("no record of %d deliveries", len(told))

    async def _travel(self, trip: "_Trip") -> Said | Comeback:
        delivery, endpoint = trip.parcel.delivery, trip.parcel.endpoint
        if (news := self._progress.get(_news_key(delivery))) and not delivery.is_progress:
            # The outcome overtakes no news: what came before it is not to arrive after it.
            await news.wait()
        lane = self._lane(endpoint)
        if wait_s := self._hindrance_s(trip.parcel, lane) or await self._turn_s(lane):
            return Comeback(after_s=wait_s)
        async with self._places[_key(endpoint)]:
            # Others that waited for this place may have changed what stands in the way.
            if wait_s := self._hindrance_s(trip.parcel, lane):
                return Comeback(after_s=wait_s)
            return await self._attempt(trip, lane)

    def _hindrance_s(self, parcel: Parcel, lane: Lane) -> float:
        """How long to stay away: of two pieces of news of one job the second waits, and an open breaker stops all."""
        key = _news_key(parcel.delivery)
        # News that was overtaken comes again as the newest that there is then, if that is still to be sent.
        is_overtaken = parcel.sequence < self._newest.get(key, 0)
        if parcel.delivery.is_progress and (key in self._progress or is_overtaken):
            return _AGAIN_S
        return lane.wait_s(time.monotonic())

    async def _turn_s(self, lane: Lane) -> float:
        """Wait for the endpoint's rate, if that is bearable; else how long to stay away."""
        now, bearable_s = time.monotonic(), self._terms.patience_s / 2
        if lane.is_stuck:
            return lane.queue_s(now)
        wait_s = lane.slot_s(now, patience_s=bearable_s)
        if wait_s > bearable_s:
            return wait_s
        await asyncio.sleep(wait_s)
        return 0.0

    async def _attempt(self, trip: "_Trip", lane: Lane) -> Said:
        delivery, endpoint = trip.parcel.delivery, trip.parcel.endpoint
        trip.is_under_way = True
        begun = time.monotonic()
        lane.begin()
        said = Said(error="the attempt was broken off")
        news = asyncio.Event()
        if delivery.is_progress:
            self._progress[_news_key(delivery)] = news
            self._remember(trip.parcel)
        try:
            why = await self._consent(endpoint, lane)
            said = Said(error=why) if why else await self._sender.send(delivery, endpoint)
        finally:
            if delivery.is_progress:
                del self._progress[_news_key(delivery)]
            news.set()
            now = time.monotonic()
            lane.end(now, is_success=said.is_success, took_s=now - begun)
        return said

    def _remember(self, parcel: Parcel) -> None:
        key = _news_key(parcel.delivery)
        self._newest[key] = parcel.sequence
        self._newest.move_to_end(key)
        if len(self._newest) > _NEWS_MAX:
            self._newest.popitem(last=False)

    async def _consent(self, endpoint: Endpoint, lane: Lane) -> str:
        """Why the endpoint may not be sent to; empty if it may."""
        if not endpoint.handshake:
            return ""
        key, now = _key(endpoint), time.monotonic()
        until, url = self._consents.get(key, (0.0, ""))
        if now < until and url == endpoint.url:
            return ""
        why, rate = await self._sender.ask(endpoint)
        if not why:
            self._consents[key] = (now + _CONSENT_S, endpoint.url)
            rates = [each for each in (rate, endpoint.rate_per_minute) if each]
            lane.rate_per_minute = min(rates, default=0)
        return why

    def _lane(self, endpoint: Endpoint) -> Lane:
        key = _key(endpoint)
        lane = self._lanes.pop(key, None)
        if lane is None or lane.concurrency != endpoint.concurrency:
            lane = Lane(
                concurrency=endpoint.concurrency,
                rate_per_minute=endpoint.rate_per_minute,
                time_scale=self._terms.time_scale,
            )
            self._places[key] = asyncio.Semaphore(endpoint.concurrency)
        # Last in the dict: the first is the one that was used longest ago.
        self._lanes[key] = lane
        if len(self._lanes) > _LANES_MAX:
            self._forget(next(iter(self._lanes)))
        return lane

    def _forget(self, key: tuple[str, str]) -> None:
        if not self._lanes[key].num_active:
            del self._lanes[key]
            self._places.pop(key, None)
            self._consents.pop(key, None)


class _Trip:
    """A parcel, and whether it left the house."""

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel
        self.is_under_way = False


def _news_key(delivery: Delivery) -> tuple[str, str, str]:
    return delivery.tenant, delivery.endpoint, delivery.job


def _key(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.tenant, endpoint.name
