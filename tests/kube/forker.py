"""dispatch processes that start at once: this one has everything imported, and forks one for each port on its input.

`python -m tests.kube.forker` answers each line, a port, with the process id of a dispatch that listens there, with the
environment of this process. It ends with its input.
"""

import os
import sys

from werkzeug.serving import make_server

from functions.dispatch.app import create_app


def serve(port: int) -> None:
    """Be a dispatch until killed."""
    server = make_server("127.0.0.1", port, create_app(), threaded=True)
    server.serve_forever()


if __name__ == "__main__":
    import nats  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            serve(int(line))
        print(pid, flush=True)
