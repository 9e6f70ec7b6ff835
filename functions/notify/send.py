"""Sends one delivery: a single POST with an end, no retry, no redirect. What the answer means is handler.py's."""

import socket
import threading
from contextlib import closing, suppress
from http.client import HTTPException

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from functions.delivery import Answer
from functions.notify.webhook import Delivery

_CONNECT_S = 5.0
# Nothing in an answer is used; this much is read so that the receiver can finish writing a usual one.
_ANSWER_MAX_BYTES = 4096


def send(delivery: Delivery, *, timeout_s: float) -> Answer:
    """POST it; the answer has status 0 if there was none within `timeout_s`, however slowly the receiver spoke."""
    parts = parse_url(delivery.url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect((parts.host or "").strip("[]"), parts.port, timeout=min(_CONNECT_S, timeout_s))
    # A socket's time-out counts from byte to byte: one byte a second would last for ever.
    is_late = threading.Event()
    deadline = threading.Timer(timeout_s, _cut, [connection, is_late])
    deadline.start()
    try:
        connection.connect()
        connection.timeout = timeout_s
        connection.request(
            "POST", parts.request_uri, body=delivery.body, headers=delivery.headers, preload_content=False
        )
        with closing(connection.getresponse()) as response:
            if is_late.is_set():
                # http.client takes what was cut off for the end of the headers.
                raise TimeoutError
            # From here on the status counts, whatever becomes of the body.
            with suppress(HTTPError, OSError):
                response.read(_ANSWER_MAX_BYTES, decode_content=False)
            return Answer(status=response.status, retry_after=response.headers.get("Retry-After"))
    except (HTTPError, HTTPException, OSError) as error:
        text = f"time-out after {timeout_s:g} s" if is_late.is_set() else f"{type(error).__name__} {error}"
        return Answer(status=0, text=text)
    finally:
        deadline.cancel()
        connection.close()


def _cut(connection: HTTPConnection, is_late: threading.Event) -> None:
    is_late.set()
    if connection.sock:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
