"""A burst of 50,000 deliveries to one endpoint: the most memory of notify, and of each of its sources, while it drains.

The outcomes are written as fast as the log takes them; the endpoint answers at once. The figure is that of the largest.
"""

import argparse
import sys
import time

from bench.hooks import a_fleet, peak_mib
from tests.faults import outcomes, publish
from tests.servers import wait_until

GOAL_MIB = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--deliveries", type=int, default=50_000)
    options = parser.parse_args()
    with a_fleet(1) as (fleet, receiver, bus):
        pairs = list(outcomes(options.deliveries))
        publish(bus, [accepted for accepted, _ in pairs])
        begun = time.monotonic()
        publish(bus, [ended for _, ended in pairs])
        wait_until(lambda: len(receiver.arrived) == options.deliveries, timeout_s=900, what="all arrive")
        seconds = time.monotonic() - begun
        peaks = {name: peak_mib(pids[-1:]) for name, pids in fleet.pids.items()}
    shown = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in peaks.items())
    print(f"{options.deliveries} deliveries in {seconds:.1f} s, {options.deliveries / seconds:.0f}/s; {shown}")
    worst = max(peaks.values())
    print(f"notify_burst {worst:.0f} MiB <={GOAL_MIB} {'ok' if worst <= GOAL_MIB else 'short'}")
    return 0 if worst <= GOAL_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
