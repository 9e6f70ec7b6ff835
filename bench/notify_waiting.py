"""50,000 deliveries that wait for their next attempt: what they cost the server while nobody else runs.

Resident memory of a nats-server that was started with them, less that of one started without; what writing them left in
its heap is shown beside it. And its processor time in ten quiet seconds: no function, source or timer is up, waiting is
a message. The figure is memory; more than 2 % of a processor makes it short too.
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
SETTLED_S = 5


def restarted_mib(server: NatsServer) -> float:
    """Resident memory after a new start, once it has settled."""
    server.kill()
    server.start()
    time.sleep(SETTLED_S)
    return resident_mib(server.pid)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--deliveries", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        server.start()
        bus = Bus.open(Settings(nats_url=server.url))
        bus.ping()
        before = restarted_mib(server)
        bus.ping()
        when = datetime.now(UTC) + timedelta(days=1)
        waiting = [
            (deliver(ended, job=ended.data["job"], endpoint="shop", url="", form="structured"), when)
            for _, ended in outcomes(options.deliveries)
        ]
        Deliveries(bus).postpone(waiting)
        written = resident_mib(server.pid) - before
        mib = restarted_mib(server) - before
        bus.close()
        used, begun = cpu_s(server.pid), time.monotonic()
        time.sleep(QUIET_S)
        share = (cpu_s(server.pid) - used) / (time.monotonic() - begun)
        server.kill()
    print(f"{options.deliveries} waiting: {mib:.1f} MiB more ({written:.1f} when written), {share:.2%} of a processor")
    is_ok = mib <= GOAL_MIB and share <= GOAL_CPU
    print(f"notify_waiting {mib:.1f} MiB <={GOAL_MIB} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
