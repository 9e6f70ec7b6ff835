"""Signatures of webhooks, as Standard Webhooks has them: over `<webhook-id>.<webhook-timestamp>.<body>`. Pure.

`v1` is HMAC-SHA256 with a secret that the receiver shares (`whsec_` and base64), `v1a` is Ed25519 with a key of
Cinevent's own (`whsk_` and base64), whose public half anyone may fetch. One header carries a signature per key, so that
old and new ones overlap while they are changed (standardwebhooks.com).
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import Any

from engine.contract.errors import Invalid, Problem

_SECRET = "whsec_"  # noqa: S105  (the prefix of one)
_PRIVATE = "whsk_"
_PUBLIC = "whpk_"


def read_secret(text: str, pointer: str) -> bytes:
    """The key in a `whsec_` secret. Raises Invalid about `pointer`, without the secret."""
    key = _decoded(text, _SECRET)
    # The lengths that Standard Webhooks allows.
    if not 24 <= len(key) <= 64:
        message = "not a signing secret; allowed: whsec_ and the base64 of 24 to 64 random bytes"
        raise Invalid(Problem(pointer=pointer, rule="secret", message=message))
    return key


def read_private_key(text: str, pointer: str) -> Any:
    """The Ed25519 private key in `whsk_` and base64: its 32 bytes, or 64 with the public half. Raises Invalid."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = _decoded(text, _PRIVATE)
    if len(key) not in (32, 64):
        message = "not a signing key; allowed: whsk_ and the base64 of 32 random bytes"
        raise Invalid(Problem(pointer=pointer, rule="secret", message=message))
    return Ed25519PrivateKey.from_private_bytes(key[:32])


def public_key(private_key: Any) -> str:
    """The `whpk_` form of a private key's public half."""
    return _PUBLIC + base64.b64encode(private_key.public_key().public_bytes_raw()).decode()


def key_set(public_keys: Iterable[str], pointer: str) -> dict[str, Any]:
    """The JSON Web Key Set (RFC 7517, 8037) of `whpk_` keys; a `kid` is the key's thumbprint. Raises Invalid."""
    return {"keys": [_jwk(text, pointer) for text in public_keys]}


def sign(body: bytes, *, webhook_id: str, timestamp: int, keys: Sequence[Any]) -> dict[str, str]:
    """The three headers that let a receiver check these very bytes.

    `keys`: those of `read_secret`, bytes, give `v1`; those of `read_private_key` give `v1a`.
    """
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(key, signed) for key in keys),
    }


def _signature(key: Any, signed: bytes) -> str:
    version, raw = (
        ("v1", hmac.new(key, signed, hashlib.sha256).digest()) if isinstance(key, bytes) else ("v1a", key.sign(signed))
    )
    return f"{version},{base64.b64encode(raw).decode()}"


def _jwk(text: str, pointer: str) -> dict[str, str]:
    key = _decoded(text, _PUBLIC)
    if len(key) != 32:
        message = "not a public key; allowed: whpk_ and the base64 of the 32 bytes of an Ed25519 key"
        raise Invalid(Problem(pointer=pointer, rule="key", message=message))
    x = _url_safe(key)
    # RFC 7638: the members that the key needs, in order, without spaces.
    thumbprint = hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest()
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "alg": "EdDSA", "use": "sig", "kid": _url_safe(thumbprint)}


def _url_safe(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decoded(text: str, prefix: str) -> bytes:
    if not text.startswith(prefix):
        return b""
    try:
        return base64.b64decode(text[len(prefix) :], validate=True)
    except ValueError:
        return b""
