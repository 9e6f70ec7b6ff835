"""The Standard Webhooks signature, v1: HMAC-SHA256 over `<webhook-id>.<webhook-timestamp>.<body>`. Pure.

A receiver checks it with any Standard Webhooks library and the secret, `whsec_` and base64 (standardwebhooks.com).
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass

from engine.contract.errors import Invalid, Problem


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
    except ValueError:
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
