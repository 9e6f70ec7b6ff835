"""Webhooks on the wire: the Standard Webhooks signature (v1), and one POST with a time limit.

The signed text is `<webhook-id>.<webhook-timestamp>.<body>`, the key is the base64 after `whsec_`. A receiver checks it
with any Standard Webhooks library (standardwebhooks.com).
"""

import base64
import binascii
import hashlib
import hmac
import socket
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPException

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from engine.contract.errors import Invalid, Problem
from functions.delivery import Answer

_CONNECT_S = 5.0
# Nothing in an answer is used; this much is read so that the receiver can finish writing a usual one.
_ANSWER_MAX_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One event on its way to one address, signed."""

    url: str
    headers: dict[str, str]
    body: bytes


def read_secret(text: str) -> bytes:
    """The key in a `whsec_` secret. Raises Invalid."""
    prefix, encoded = text[:6], text[6:]
    try:
        key = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        key = b""
    # The lengths that Standard Webhooks allows.
    if prefix != "whsec_" or not 24 <= len(key) <= 64:
        message = "not a signing secret; allowed: whsec_ and the base64 of 24 to 64 random bytes"
        raise Invalid(Problem(pointer="CINEVENT_WEBHOOK_SECRET", rule="secret", message=message))
    return key


def sign(body: bytes, *, key: bytes, webhook_id: str, timestamp: int) -> dict[str, str]:
    """The three headers that let a receiver check these very bytes."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def send(delivery: Delivery, *, timeout_s: float) -> Answer:
    """POST it once: no retry, no redirect, and an end after `timeout_s`, however slowly the receiver speaks."""
    parts = urllib3.util.parse_url(delivery.url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect((parts.host or "").strip("[]"), parts.port, timeout=min(_CONNECT_S, timeout_s))
    # A socket's time-out counts from byte to byte: one byte a second would last for ever.
    deadline = threading.Timer(timeout_s, _cut, [connection])
    deadline.start()
    try:
        connection.connect()
        connection.timeout = timeout_s
        connection.request(
            "POST", parts.request_uri, body=delivery.body, headers=delivery.headers, preload_content=False
        )
        with closing(connection.getresponse()) as response:
            # A status counts, whatever becomes of the body.
            with suppress(HTTPError, OSError):
                response.read(_ANSWER_MAX_BYTES, decode_content=False)
            return Answer(status=response.status, retry_after=response.headers.get("Retry-After"))
    except (HTTPError, HTTPException, OSError) as error:
        return Answer(status=0, text=f"{type(error).__name__} {error}")
    finally:
        deadline.cancel()
        connection.close()


def _cut(connection: HTTPConnection) -> None:
    if connection.sock:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
