"""Import of each function's app in a fresh interpreter, without the interpreter's own start; no torch among it.

Median of seven; the figure is the slowest function.
"""

import statistics
import subprocess
import sys

FUNCTIONS = ("submit", "dispatch", "notify")
GOAL_S = 0.6
RUNS = 7
SCRIPT = """
import sys, time
begun = time.perf_counter()
import functions.{name}.app
seconds = time.perf_counter() - begun
heavy = [name for name in ("torch", "diffusers", "transformers") if name in sys.modules]
assert not heavy, heavy
print(seconds)
"""


def seconds(name: str) -> float:
    """Seconds that the import takes."""
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(name=name)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> int:
    medians = {name: statistics.median(seconds(name) for _ in range(RUNS)) for name in FUNCTIONS}
    print(", ".join(f"{name} {median:.2f} s" for name, median in medians.items()))
    value = max(medians.values())
    print(f"core_import {value:.2f} s <={GOAL_S} {'ok' if value <= GOAL_S else 'short'}")
    return 0 if value <= GOAL_S else 1


if __name__ == "__main__":
    sys.exit(main())
