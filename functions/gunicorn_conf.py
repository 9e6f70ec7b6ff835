"""How gunicorn serves a function: one process with threads, which drains on SIGTERM and closes its clients.

One process, because a function scales by pods; threads, because a request waits for NATS most of its time.
"""

from typing import Any

worker_class = "gthread"
workers = 1
threads = 16
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


def worker_exit(_server: Any, worker: Any) -> None:
    """Close what the app opened, after its last request."""
    deps = getattr(worker.wsgi, "extensions", {}).get("deps")
    if deps:
        deps.close()
