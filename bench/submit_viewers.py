"""200 viewers of live streams at two events a second each: the 99th percentile from a progress event to its viewer.

The viewers follow 20 jobs, ten each, over Server-Sent Events; the events are published as the engine publishes them.
Both ends read the same clock.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from bench.load import BODY, Target, closed
from engine.adapters.bus import Bus
from engine.contract.settings import Settings
from tests.e2e.served import Served, a_submit
from tests.make import an_event
from tests.servers import wait_until

VIEWERS = 200
JOBS = 20
EVENTS_PER_S = 2.0
GOAL_MS = 250


async def view(session: aiohttp.ClientSession, url: str, ready: asyncio.Semaphore, seen: list[float]) -> None:
    """Read one stream to its end; the seconds that each progress event took to come."""
    async with session.get(url, headers={"Accept": "text/event-stream"}) as answer:
        async for line in answer.content:
            if line.startswith(b"event: snapshot"):
                ready.release()
            if line.startswith(b"data: ") and b'"sent_at"' in line:
                seen.append(time.time() - json.loads(line[6:])["sent_at"])


async def view_all(served: Served, jobs: Sequence[str], begin: threading.Event) -> list[float]:
    seen: list[float] = []
    ready = asyncio.Semaphore(0)
    timeout = aiohttp.ClientTimeout(total=300)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=served.headers, timeout=timeout, connector=connector) as session:
        urls = [f"{served.url}/api/v1/jobs/{jobs[number % len(jobs)]}/events" for number in range(VIEWERS)]
        tasks = [asyncio.create_task(view(session, url, ready, seen)) for url in urls]
        for _ in urls:
            await ready.acquire()
        begin.set()
        await asyncio.gather(*tasks)
    return seen


def accepted(bus: Bus) -> list[str]:
    """The first jobs in the log."""
    messages = bus.read("CINEVENT_JOBS", matching="cinevent.*.*.requested.*", limit=JOBS)
    return [message.subject.split(".")[2] for message in messages]


def publish(bus: Bus, jobs: Sequence[str], begin: threading.Event, seconds: float) -> None:
    """Events of all jobs, spread over time as those of different engines are; then the outcomes."""
    begin.wait(120)
    start, count = time.monotonic(), int(seconds * EVENTS_PER_S) * len(jobs)
    for number in range(count):
        time.sleep(max(0.0, start + number / EVENTS_PER_S / len(jobs) - time.monotonic()))
        job = jobs[number % len(jobs)]
        bus.publish(an_event("progress", tenant="acme", job=job, key=str(number), sent_at=time.time()))
    for job in jobs:
        bus.publish(an_event("failed", tenant="acme", job=job))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, a_submit(Path(temporary)) as served:
        target = Target("POST", f"{served.url}/api/v1/generate", served.headers, BODY)
        bus = Bus.open(Settings(nats_url=served.nats.url), is_client=True)
        wait_until(lambda: closed(target, connections=1, seconds=0.2) and len(accepted(bus)) == JOBS)
        jobs = accepted(bus)
        for job in jobs:
            bus.publish(an_event("started", tenant="acme", job=job))
        begin = threading.Event()
        engine = threading.Thread(target=publish, args=(bus, jobs, begin, options.seconds))
        engine.start()
        seen = sorted(asyncio.run(view_all(served, jobs, begin)))
        engine.join()
        bus.close()
    wanted = int(options.seconds * EVENTS_PER_S) * VIEWERS
    value = 1000 * seen[int(len(seen) * 0.99)]
    # A viewer that is behind gets the newest progress only; more than a tenth of that would be another service.
    is_ok = value <= GOAL_MS and len(seen) >= 0.9 * wanted
    print(f"{len(seen)} of {wanted} events, p50 {1000 * seen[len(seen) // 2]:.0f} ms, max {1000 * seen[-1]:.0f} ms")
    print(f"submit_viewers {value:.0f} ms <={GOAL_MS} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
