"""gunicorn's threaded worker with an end to how long a client may take: a slow one would else hold a thread for ever.

A request has to arrive within a minute, however slowly its bytes come; a client that reads nothing for half a minute is
let go, and so is one that has gone silent in the middle of a request.
"""

import socket
import time
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

# 20 MiB, the largest upload, on a line of 3 Mbit/s.
_REQUEST_S = 60.0
_SEND_S = 30.0


class BoundedWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """The worker; see above."""

    def enqueue_req(self, conn: Any) -> None:
        """Hand a connection to a thread, with a socket that keeps time."""
        if not isinstance(conn.sock, _BoundedSocket):
            conn.sock = _BoundedSocket(fileno=conn.sock.detach())
        super().enqueue_req(conn)


class _BoundedSocket(socket.socket):
    """A socket whose reads together have a deadline; it begins when the worker turns to the connection."""

    _deadline = 0.0
    _own_s: float | None = None

    def setblocking(self, flag: bool) -> None:
        """Blocking means for so long: gunicorn calls this before it reads a request."""
        self._deadline = time.monotonic() + _REQUEST_S
        super().setblocking(flag)

    def recv(self, *arguments: Any) -> bytes:
        """Raises TimeoutError once the request took too long."""
        self._wait(self._deadline - time.monotonic())
        return super().recv(*arguments)

    def recv_into(self, *arguments: Any) -> int:
        """The same."""
        self._wait(self._deadline - time.monotonic())
        return super().recv_into(*arguments)

    def sendall(self, *arguments: Any) -> None:
        """Raises TimeoutError if the client reads nothing of it for too long."""
        self._wait(_SEND_S)
        super().sendall(*arguments)

    def _wait(self, seconds: float) -> None:
        # Where gunicorn sets a time-out of its own (polling, draining what is left at a close), that one counts.
        if self.gettimeout() in (None, self._own_s):
            if seconds <= 0:
                raise TimeoutError("the request took too long to arrive")
            self.settimeout(seconds)
            self._own_s = self.gettimeout()
