"""Webhooks as values: what is sent, that every library of receivers accepts it, and what an answer leads to."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from engine.contract.codec import decode
from engine.contract.delivery import (
    MAX_TRIES,
    WAITS_S,
    Delivery,
    Said,
    State,
    after,
    deliver,
    delivery_id,
    event_bytes,
    is_delivery_id,
)
from engine.contract.errors import BadEvent, Invalid
from engine.contract.signature import key_set, public_key, read_private_key, read_secret, sign
from tests.make import JOB, TENANT, an_event

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
SECRET = "whsec_" + base64.b64encode(b"cinevent" * 4).decode()
PRIVATE = read_private_key("whsk_" + base64.b64encode(b"ed25519!" * 4).decode(), "/key")


def a_delivery(name: str = "completed", **over: Any) -> Delivery:
    made = deliver(an_event(name), job=JOB, endpoint="shop", url="", form="structured")
    return Delivery(**{**{field: getattr(made, field) for field in made.__slots__}, **over})


def signed(body: bytes, *keys: Any) -> dict[str, str]:
    return sign(body, webhook_id="id-1", timestamp=int(datetime.now(UTC).timestamp()), keys=keys)


@pytest.mark.parametrize("name", ["completed", "failed", "cancelled"])
def test_an_outcome_is_sent_as_the_structured_event_with_a_sequence(name: str) -> None:
    event = an_event(name)

    made = a_delivery(name)

    received = decode(made.headers, made.body.encode())
    assert made.headers["content-type"] == "application/cloudevents+json"
    assert (received.id, received.data) == (event.id, event.data)
    assert received.extensions == {"sequence": f"{int(event.time.timestamp()) * 10**6:020d}"}


def test_binary_mode_repeats_in_the_signed_body_what_the_unsigned_headers_say() -> None:
    event = an_event("completed")

    headers, body = event_bytes(event, form="binary")

    assert (headers["ce-type"], headers["ce-id"]) == (event.type, event.id)
    assert (json.loads(body)["type"], json.loads(body)["subject"]) == (event.type, JOB)


def test_the_published_key_verifies_the_asymmetric_signature() -> None:
    body = b'{"a": 1}'
    headers = signed(body, PRIVATE)
    (jwk,) = key_set([public_key(PRIVATE)], "")["keys"]

    version, _, signature = headers["webhook-signature"].partition(",")
    key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(jwk["x"] + "="))

    assert (version, jwk["kty"], jwk["crv"]) == ("v1a", "OKP", "Ed25519")
    key.verify(base64.b64decode(signature), f"id-1.{headers['webhook-timestamp']}.".encode() + body)


@given(
    body=st.dictionaries(st.text(), st.text()).map(lambda value: json.dumps(value).encode()),
    key=st.binary(min_size=24, max_size=64),
)
def test_what_is_signed_verifies(body: bytes, key: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()

    assert Webhook(secret).verify(body, signed(body, read_secret(secret, ""))) == json.loads(body)


@given(place=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_a_flipped_bit_does_not_verify(place: int, bit: int) -> None:
    sent = a_delivery().body.encode()
    headers = signed(sent, read_secret(SECRET, ""))
    body = bytearray(sent)
    body[place % len(body)] ^= 1 << bit

    with pytest.raises((WebhookVerificationError, UnicodeDecodeError)):
        Webhook(SECRET).verify(bytes(body), headers)


@pytest.mark.parametrize("header", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_changed_header_does_not_verify(header: str) -> None:
    body = a_delivery().body.encode()
    headers = signed(body, read_secret(SECRET, ""))
    headers = {**headers, header: headers[header].translate(str.maketrans("0123456789ab", "1234567890ba"))}

    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "whsec_!!!!",
        "secret",
        SECRET[6:],
        "whsec_" + base64.b64encode(b"short").decode(),
        SECRET + "\n",
        "whsec_\u00e9",
    ],
)
def test_a_malformed_secret_is_refused_by_its_name_and_not_repeated(text: str) -> None:
    with pytest.raises(Invalid, match="CINEVENT_WEBHOOK_SECRET") as caught:
        read_secret(text, "CINEVENT_WEBHOOK_SECRET")

    assert len(text) < 7 or text not in str(caught.value)


@pytest.mark.parametrize("text", ["", "whsk_", "whsk_AAAA", SECRET])
def test_a_malformed_signing_key_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(Invalid, match="KEYS"):
        read_private_key(text, "KEYS")


@given(st.text(min_size=1, max_size=10))
def test_a_long_log_is_cut_at_its_head(words: str) -> None:
    error = {"code": "engine_crashed", "message": "died", "log_tail": f"{words * 20_000}the end"}

    _, body = event_bytes(an_event("failed", error=error), form="structured")

    cut: dict[str, Any] = json.loads(body)["data"]["error"]
    assert len(body) < 20_000
    assert error["log_tail"].endswith(cut["log_tail"])
    assert cut["log_tail"].endswith("the end")


def test_a_delivery_is_the_same_for_the_same_event_and_endpoint() -> None:
    same = {delivery_id(TENANT, "shop", "e1") for _ in range(2)}
    others = {delivery_id(*parts) for parts in ((TENANT, "shop", "e2"), (TENANT, "mall", "e1"), ("t2", "shop", "e1"))}

    assert len(same) == 1
    assert len(same | others) == 4
    assert all(is_delivery_id(each) for each in same | others)


def test_a_delivery_comes_back_from_its_message_as_it_was() -> None:
    made = a_delivery(number=3, round="r")

    assert Delivery.from_event(made.to_event()) == made


def test_what_is_no_delivery_is_refused() -> None:
    with pytest.raises(BadEvent, match="not a delivery"):
        Delivery.from_event(an_event("completed"))


@pytest.mark.parametrize("status", [200, 204, 299])
def test_any_2xx_ends_a_delivery(status: int) -> None:
    assert after(a_delivery(), Said(status=status), now=NOW, time_scale=1.0).state is State.DELIVERED


@pytest.mark.parametrize("status", [0, 100, 301, 307, 400, 401, 404, 408, 429, 500, 503])
@pytest.mark.parametrize("number", range(1, MAX_TRIES))
def test_any_other_answer_brings_it_again_within_a_fifth_of_its_time(status: int, number: int) -> None:
    judgement = after(a_delivery(number=number), Said(status=status), now=NOW, time_scale=1.0)

    assert judgement.next_at is not None
    wait_s = (judgement.next_at - NOW).total_seconds()
    assert 0.8 * WAITS_S[number - 1] <= wait_s <= 1.2 * WAITS_S[number - 1]


def test_the_attempts_span_three_days() -> None:
    assert (MAX_TRIES, round(sum(WAITS_S) / 3600)) == (12, 76)


@pytest.mark.parametrize(
    ("delivery", "status", "state"),
    [
        (a_delivery(number=MAX_TRIES), 500, State.FAILED),
        (a_delivery(), 410, State.FAILED),
        (a_delivery("progress"), 500, State.DROPPED),
        (a_delivery("progress"), 204, State.DELIVERED),
    ],
)
def test_some_answers_are_the_last(delivery: Delivery, status: int, state: State) -> None:
    judgement = after(delivery, Said(status=status), now=NOW, time_scale=1.0)

    assert (judgement.state, judgement.next_at) == (state, None)


@pytest.mark.parametrize(
    ("status", "asked_s", "least_s"), [(429, 7, 7), (503, 7, 7), (503, 1e9, 86_400), (429, 0, 0), (500, 7, 4)]
)
def test_an_endpoint_may_say_when_up_to_a_day(status: int, asked_s: float, least_s: float) -> None:
    judgement = after(a_delivery(), Said(status=status, retry_after_s=asked_s), now=NOW, time_scale=1.0)

    assert judgement.next_at is not None
    wait_s = (judgement.next_at - NOW).total_seconds()
    assert least_s <= wait_s <= (6 if status == 500 else least_s * 1.1)
