"""50,000 deliveries that wait for their next attempt: what they cost the server while nobody else runs.

Memory of nats-server after them less before, and its processor time in ten quiet seconds. No function, source or timer
is up: waiting is a message. The figure is memory; more than 2 % of a processor makes it short too.
"""

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.hooks import cpu_s, resident_mib
from engine.adapters.bus import Bus
from engine.adapters.deliveries import Deliveries
from engine.contract.delivery import deliver
from engine.contract.settings import Settings
from tests.faults import outcomes
from tests.servers import NatsServer

GOAL_MIB = 50
GOAL_CPU = 0.02
QUIET_S = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--deliveries", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        server.start()
        bus = Bus.open(Settings(nats_url=server.url))
        bus.ping()
        before = resident_mib(server.pid)
        when = datetime.now(UTC) + timedelta(days=1)
        waiting = [
            (deliver(ended, job=ended.data["job"], endpoint="shop", url="", form="structured"), when)
            for _, ended in outcomes(options.deliveries)
        ]
        Deliveries(bus).postpone(waiting)
        bus.close()
        time.sleep(5)
        used, begun = cpu_s(server.pid), time.monotonic()
        time.sleep(QUIET_S)
        share = (cpu_s(server.pid) - used) / (time.monotonic() - begun)
        mib = resident_mib(server.pid) - before
        server.kill()
    print(f"{options.deliveries} waiting: {mib:.1f} MiB more, {share:.2%} of a processor")
    is_ok = mib <= GOAL_MIB and share <= GOAL_CPU
    print(f"notify_waiting {mib:.1f} MiB <={GOAL_MIB} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
