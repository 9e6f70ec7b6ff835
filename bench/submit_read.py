"""Reads of one job per second: GET /api/v1/jobs/{id} of a job that runs, over 32 connections, as answers come."""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

from bench.load import BODY, Target, closed
from engine.adapters.bus import Bus
from engine.contract.settings import Settings
from tests.e2e.served import a_submit
from tests.make import an_event
from tests.servers import wait_until

GOAL = 1500


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, a_submit(Path(temporary)) as served:
        target = Target("POST", f"{served.url}/api/v1/generate", served.headers, BODY)
        wait_until(lambda: set(closed(target, connections=1, seconds=0.1).statuses) == {202})
        bus = Bus.open(Settings(nats_url=served.nats.url))
        jobs = [message.subject.split(".")[2] for message in bus.read("CINEVENT_JOBS", matching="cinevent.>", limit=20)]
        for job in jobs:
            for name in ("launched", "started", "progress"):
                bus.publish(an_event(name, tenant="acme", job=job))
        bus.close()
        turn = itertools.cycle(jobs)
        read = Target("GET", lambda: f"{served.url}/api/v1/jobs/{next(turn)}", served.headers)
        result = closed(read, connections=32, seconds=options.seconds)
    is_ok = result.rate >= GOAL and set(result.statuses) == {200}
    print(f"statuses {result.statuses}, p50 {result.percentile_ms(50):.1f} ms, p99 {result.percentile_ms(99):.1f} ms")
    print(f"submit_read {result.rate:.0f} /s >={GOAL} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
