"""Throw generated requests at a real submit, as its own OpenAPI document describes it and against it: `make fuzz`.

schemathesis makes the requests: valid ones, invalid ones, edge cases and sequences. Every answer is checked: no 5xx, no
status and no media type that the document lacks, no body that breaks its schema. Ends with 1 if one did.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.e2e.served import a_submit

# Not positive_data_acceptance: a request may keep the schema and break a rule that no schema can say (frames are
# 4k + 1, a picture must have been uploaded).
EXCLUDED = "positive_data_acceptance"


def main() -> int:
    """Run; the exit code is schemathesis'."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--examples", type=int, default=800, help="per operation and phase (default: 800, some 20,000 requests)"
    )
    parser.add_argument("--seed", type=int, help="of a run to repeat")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cinevent-fuzz-") as folder, a_submit(Path(folder)) as served:
        st = Path(sysconfig.get_path("scripts")) / "st"
        seed = ["--seed", str(options.seed)] if options.seed is not None else []
        done = subprocess.run(
            [
                *(st, "run", f"{served.url}/openapi.json", "--checks", "all", "--exclude-checks", EXCLUDED),
                *("--header", f"Authorization: {served.headers['Authorization']}"),
                *("--max-examples", str(options.examples), "--continue-on-failure", "--workers", "2", *seed),
                *("--request-timeout", "30", "--generation-database", "none"),
            ],
            cwd=folder,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz_hooks", "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        errors = [line for line in (Path(folder) / "submit.log").read_text().splitlines() if "unforeseen" in line]
        print(f"{len(errors)} unforeseen errors in submit's log")
    return done.returncode or bool(errors)


if __name__ == "__main__":
    sys.exit(main())
