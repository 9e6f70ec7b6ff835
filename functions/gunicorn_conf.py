"""How gunicorn serves a function: one process with threads, which drains on SIGTERM and closes its clients.

One process, because a function scales by pods; threads, because a request waits for NATS most of its time, and one that
follows a job all of it.
"""

from typing import Any

worker_class = "functions.worker.BoundedWorker"
workers = 1
# Made as they are needed. 200 followers of jobs (CINEVENT_MAX_FOLLOWERS), and room for everybody else.
threads = 256
keepalive = 75
graceful_timeout = 25
timeout = 60
accesslog = None
errorlog = "-"
loglevel = "warning"
# A request line or header beyond these is not ours; gunicorn answers 400.
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190
control_socket_disable = True


def post_worker_init(worker: Any) -> None:
    """Let the app see that it is to end: an answer that goes on for ever would have it killed."""
    worker.wsgi.extensions["is_stopping"] = lambda: not worker.alive


def worker_exit(_server: Any, worker: Any) -> None:
    """Close what the app opened, after its last request."""
    deps = getattr(worker.wsgi, "extensions", {}).get("deps")
    if deps:
        deps.close()
