"""How long a submit takes at 500 a second: the 99th percentile, from when it was to be sent to its 202."""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.load import BODY, Target, closed, open_loop
from tests.e2e.served import a_submit
from tests.servers import wait_until

RATE = 500
GOAL_MS = 150


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, a_submit(Path(temporary)) as served:
        target = Target("POST", f"{served.url}/api/v1/generate", served.headers, BODY)
        wait_until(lambda: set(closed(target, connections=1, seconds=0.1).statuses) == {202})
        result = open_loop(target, rate=RATE, seconds=options.seconds)
    value = result.percentile_ms(99)
    is_ok = value <= GOAL_MS and set(result.statuses) == {202}
    print(f"statuses {result.statuses}, p50 {result.percentile_ms(50):.1f} ms, {result.rate:.0f}/s")
    print(f"submit_latency {value:.0f} ms <={GOAL_MS} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
