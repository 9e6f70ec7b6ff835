"""What receivers have: the public libraries, unmodified, accept our signatures, also while a secret is changed."""

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from openai import OpenAI
from standardwebhooks import Webhook
from svix.webhooks import Webhook as SvixWebhook

from engine.contract.delivery import event_bytes
from engine.contract.signature import read_private_key, read_secret, sign
from tests.make import an_event

SECRET, OTHER = ("whsec_" + base64.b64encode(text * 4).decode() for text in (b"cinevent", b"tnevenic"))
PRIVATE = read_private_key("whsk_" + base64.b64encode(b"ed25519!" * 4).decode(), "/key")


def signed(body: bytes, *keys: Any) -> dict[str, str]:
    return sign(body, webhook_id="id-1", timestamp=int(datetime.now(UTC).timestamp()), keys=keys)


LIBRARIES = {
    "standardwebhooks": lambda secret, body, headers: Webhook(secret).verify(body, headers),
    "svix": lambda secret, body, headers: SvixWebhook(secret).verify(body, headers),
    "openai": lambda secret, body, headers: OpenAI(api_key="none").webhooks.verify_signature(
        body, headers, secret=secret
    ),
}


@pytest.mark.parametrize("secret", [SECRET, OTHER])
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_libraries_accept_either_secret_while_it_is_changed(library: str, secret: str) -> None:
    body = event_bytes(an_event("completed"), form="structured")[1]
    headers = signed(body, read_secret(SECRET, ""), PRIVATE, read_secret(OTHER, ""))

    LIBRARIES[library](secret, body, headers)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_libraries_refuse_a_secret_that_did_not_sign(library: str) -> None:
    body = event_bytes(an_event("completed"), form="structured")[1]

    with pytest.raises(Exception, match=r"(?i)signature"):
        LIBRARIES[library](OTHER, body, signed(body, read_secret(SECRET, ""), PRIVATE))
