"""Load over HTTP from one event loop: as fast as answers come, or at a rate that does not wait for them."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp

BODY = {"model": "tiny-t2v", "input": {"prompt": "a cat walks on the beach"}}


@dataclass
class Result:
    """Answers by status, and the seconds that each took."""

    statuses: dict[int, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0

    def count(self, status: int, seconds: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.seconds.append(seconds)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.seconds) / self.elapsed_s

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@dataclass(frozen=True)
class Target:
    """One request, to be sent again and again."""

    method: str
    url: Callable[[], str] | str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, object] | None = None

    async def send(self, session: aiohttp.ClientSession, result: Result) -> None:
        begun = time.perf_counter()
        url = self.url if isinstance(self.url, str) else self.url()
        data = None if self.body is None else json.dumps(self.body)
        headers = {**self.headers, **({} if data is None else {"Content-Type": "application/json"})}
        async with session.request(self.method, url, data=data, headers=headers) as answer:
            await answer.read()
            result.count(answer.status, time.perf_counter() - begun)


def closed(target: Target, *, connections: int, seconds: float) -> Result:
    """Each connection sends its next request once it has the answer to the last."""

    async def worker(session: aiohttp.ClientSession, result: Result, end: float) -> None:
        while time.perf_counter() < end:
            await target.send(session, result)

    async def run() -> Result:
        result, begun = Result(), time.perf_counter()
        async with _session(connections) as session:
            end = begun + seconds
            await asyncio.gather(*(worker(session, result, end) for _ in range(connections)))
        result.elapsed_s = time.perf_counter() - begun
        return result

    return asyncio.run(run())


def open_loop(target: Target, *, rate: float, seconds: float) -> Result:
    """A request is sent when its time has come, however many are under way; waiting for a connection counts."""

    async def run() -> Result:
        result, begun = Result(), time.perf_counter()
        async with _session(256) as session:
            tasks = []
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
                tasks.append(asyncio.create_task(target.send(session, result)))
            await asyncio.gather(*tasks)
        result.elapsed_s = time.perf_counter() - begun
        return result

    return asyncio.run(run())


def _session(connections: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections), timeout=aiohttp.ClientTimeout(total=30)
    )
