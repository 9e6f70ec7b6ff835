"""How long a producer waits for its 503 while nats-server is away: submit under gunicorn, ten POSTs in a row.

The slowest one counts. The server is back afterwards, and the figure stands only if the next POST is accepted.
"""

import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench.core_start import is_ready
from tests.servers import NatsServer, child, free_port, wait_until

REQUESTS = 10
GOAL_S = 1.0
BODY = {"model": "tiny-t2v", "input": {"prompt": "a cat walks on the beach"}}


def post(port: int) -> tuple[int, float]:
    """The status of one POST, and its seconds."""
    headers = {"Content-Type": "application/json"}
    url = f"http://127.0.0.1:{port}/api/v1/generate"
    request = urllib.request.Request(url, data=json.dumps(BODY).encode(), headers=headers)
    begun = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status = int(answer.status)
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
    return status, time.perf_counter() - begun


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary), free_port()
        nats = NatsServer(folder)
        nats.start()
        command = [sys.executable, "-m", "gunicorn", "-c", "python:functions.gunicorn_conf"]
        env = {"CINEVENT_NATS_URL": nats.url, "CINEVENT_STORE_URL": f"file:{folder / 'store'}"}
        app = ["--bind", f"127.0.0.1:{port}", "functions.submit.app:create_app()"]
        with child([*command, *app], env=env, log=folder / "log") as submit:
            wait_until(lambda: is_ready(port), what="submit is ready")
            nats.kill()
            away = [post(port) for _ in range(REQUESTS)]
            nats.start()
            wait_until(lambda: post(port)[0] == 202, what="submit accepts again")
            submit.stop()
        nats.kill()
    statuses, seconds = {status for status, _ in away}, sorted(taken for _, taken in away)
    print(f"statuses {statuses}, min {seconds[0]:.2f}, median {seconds[REQUESTS // 2]:.2f}, max {seconds[-1]:.2f} s")
    is_ok = statuses == {503} and seconds[-1] <= GOAL_S
    print(f"submit_outage {seconds[-1]:.2f} s <={GOAL_S} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
