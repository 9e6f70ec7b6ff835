"""Start of each function to ready: from fork to the first 200 of /readyz, under gunicorn, nats-server running.

What a cold start adds to a request beside the pod's own. Median of five starts each; the slowest function counts.
"""

import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.servers import NatsServer, child, free_port

FUNCTIONS = ("submit", "dispatch", "notify")
GOAL_S = 1.0
RUNS = 5


def start(function: str, nats_url: str, folder: Path) -> float:
    """Seconds until this function is ready."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "python:functions.gunicorn_conf", "--bind", f"127.0.0.1:{port}"]
    env = {"CINEVENT_NATS_URL": nats_url, "CINEVENT_STORE_URL": f"file:{folder / 'store'}"}
    begun = time.perf_counter()
    with child([*command, f"functions.{function}.app:create_app()"], env=env, log=folder / f"{function}.log"):
        while not is_ready(port):
            assert time.perf_counter() - begun < 30, (folder / f"{function}.log").read_text()
            time.sleep(0.005)
        return time.perf_counter() - begun


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        nats = NatsServer(Path(temporary))
        nats.start()
        start("submit", nats.url, Path(temporary))  # the first start makes the streams and warms the disk
        medians = {
            name: statistics.median(start(name, nats.url, Path(temporary)) for _ in range(RUNS)) for name in FUNCTIONS
        }
        nats.kill()
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in medians.items()))
    value = max(medians.values())
    print(f"core_start {value:.2f} s <={GOAL_S} {'ok' if value <= GOAL_S else 'short'}")
    return 0 if value <= GOAL_S else 1


if __name__ == "__main__":
    sys.exit(main())
