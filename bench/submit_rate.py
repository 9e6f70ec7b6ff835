"""Durable submits per second: submit against Flask and Celery into Redis, side by side on the same machine, in turns.

Each is asked by 32 connections as fast as it answers; what is counted are 202s of requests that are on the disk. The
figure is the median of the rounds' ratios. The load's own process takes part of the machine from both alike.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from bench.celery_peer import a_peer
from bench.load import BODY, Target, closed
from tests.e2e.served import a_submit
from tests.servers import wait_until

GOAL = 2.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with a_submit(folder) as served, a_peer(folder) as peer:
            targets = {
                "submit": Target("POST", f"{served.url}/api/v1/generate", served.headers, BODY),
                "celery": Target("POST", f"{peer}/api/v1/generate", {}, BODY),
            }
            for target in targets.values():
                wait_until(lambda target=target: set(closed(target, connections=1, seconds=0.1).statuses) == {202})
            ratios = []
            for _ in range(options.rounds):
                results = {
                    name: closed(target, connections=32, seconds=options.seconds) for name, target in targets.items()
                }
                assert {status for result in results.values() for status in result.statuses} == {202}, results
                rates = {name: result.rate for name, result in results.items()}
                ratios.append(rates["submit"] / rates["celery"])
                p99 = {name: f"p99 {result.percentile_ms(99):.0f} ms" for name, result in results.items()}
                print(", ".join(f"{name} {rate:.0f}/s {p99[name]}" for name, rate in rates.items()), flush=True)
    value = statistics.median(ratios)
    print(f"submit_rate {value:.2f} x >={GOAL} {'ok' if value >= GOAL else 'short'}")
    return 0 if value >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
