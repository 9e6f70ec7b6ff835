"""Webhooks under faults: 10,000 events to 3 endpoints while 30 % of the answers are 500, 429, silence, reset or half.

Twice: undisturbed, every event and endpoint gets exactly one 2xx; and with 100 kill -9 of notify, its sources and
nats-server at random, none is lost and none comes twice but what was in flight at a kill. `--events` and `--kills` make
it smaller. The figure is the number of deliveries that are lost, doubled without a kill, or wrong.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests import faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    num_bad = 0
    for kills in (0, options.kills):
        with tempfile.TemporaryDirectory() as folder:
            found = faults.run(
                Path(folder), num_events=options.events, num_kills=kills, seed=options.seed, timeout_s=1000
            )
        most = found.most_duplicates
        print(
            f"{found.num_events} events x {faults.NUM_ENDPOINTS}, {kills} kills: {len(found.missing)} lost, "
            f"{len(found.unasked)} unasked, {found.num_duplicates} twice (at most {most}), "
            f"{found.ledger.num_wrong} wrong, in {found.seconds:.0f} s; answers: {dict(found.ledger.answers)}"
        )
        num_bad += len(found.missing) + len(found.unasked) + found.ledger.num_wrong
        num_bad += max(0, found.num_duplicates - most)
    print(f"notify_faults {num_bad} deliveries <=0 {'ok' if num_bad == 0 else 'short'}")
    return 0 if num_bad == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
