"""From an outcome in the log to the 2xx of its endpoint, at 300 outcomes a second: log, source, notify, HTTP, all real.

Measured from before the outcome is published to when the endpoint has read it, for 20 s, on this machine with the
receiver and the publisher beside them. The figure is p50/p99.
"""

import argparse
import sys
import threading
import time

from bench.hooks import a_fleet
from engine.adapters.bus import Bus
from engine.contract.events import Event
from tests.faults import outcomes, publish
from tests.servers import wait_until

GOAL_MS = (50, 250)
PUBLISHERS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=int, default=300, help="outcomes a second")
    parser.add_argument("--seconds", type=int, default=20)
    options = parser.parse_args()
    with a_fleet(1) as (_, receiver, bus):
        pairs = list(outcomes(options.rate * options.seconds))
        publish(bus, [accepted for accepted, _ in pairs])
        events = [ended for _, ended in pairs]
        sent: dict[str, float] = {}
        begun = time.monotonic() + 0.5
        shares = [
            threading.Thread(
                target=say, args=(bus, events[n::PUBLISHERS], sent, begun + n / options.rate, options.rate)
            )
            for n in range(PUBLISHERS)
        ]
        for share in shares:
            share.start()
        for share in shares:
            share.join()
        wait_until(lambda: len(receiver.arrived) == len(events), timeout_s=120, what="all arrive")
        times = sorted((receiver.arrived[name] - at) * 1000 for name, at in sent.items())
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    print(f"{len(times)} outcomes: min {times[0]:.0f}, p50 {p50:.0f}, p99 {p99:.0f}, max {times[-1]:.0f} ms")
    is_ok = p50 <= GOAL_MS[0] and p99 <= GOAL_MS[1]
    print(f"notify_latency {p50:.0f}/{p99:.0f} ms(p50/p99) <={GOAL_MS[0]}/{GOAL_MS[1]} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


def say(bus: Bus, events: list[Event], sent: dict[str, float], begun: float, rate: int) -> None:
    """Publish these in step, each at its own time."""
    for number, event in enumerate(events):
        time.sleep(max(0.0, begun + number * PUBLISHERS / rate - time.monotonic()))
        sent[event.id] = time.monotonic()
        bus.publish(event)


if __name__ == "__main__":
    sys.exit(main())
