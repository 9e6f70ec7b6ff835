"""Webhooks as values: what is sent, that every Standard Webhooks library accepts it, and what an answer means."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from engine.contract.codec import decode
from engine.contract.errors import Invalid, Unavailable
from engine.contract.events import Event
from engine.contract.job import Job
from functions.delivery import Answer
from functions.notify.handler import delivery, is_gone
from functions.notify.webhook import Delivery, read_secret, sign
from tests.make import a_job, a_request, an_event

SECRET = "whsec_" + base64.b64encode(b"cinevent" * 4).decode()
KEY = read_secret(SECRET)
URL = "https://receiver.example/hook?of=1"


def a_subscribed_job(*names: str) -> Job:
    """A job whose producer asked for these outcomes."""
    return a_job(request=a_request(webhook={"url": URL, "events": list(names)}))


def sent(event: Event) -> Delivery:
    """What is sent for an outcome that was asked for, now."""
    made = delivery(event, a_subscribed_job(event.name), key=KEY, now=datetime.now(UTC))
    assert made is not None
    return made


@pytest.mark.parametrize("name", ["completed", "failed", "cancelled"])
def test_an_outcome_is_sent_as_the_signed_structured_event(name: str) -> None:
    event = an_event(name)

    made = sent(event)

    assert made.url == URL
    assert made.headers["webhook-id"] == event.id
    assert made.headers["content-type"] == "application/cloudevents+json"
    assert made.headers["user-agent"].startswith("cinevent/")
    assert decode({"content-type": made.headers["content-type"]}, made.body) == event
    assert Webhook(SECRET).verify(made.body, made.headers)["id"] == event.id


@given(
    body=st.dictionaries(st.text(), st.text()).map(lambda value: json.dumps(value).encode()),
    key=st.binary(min_size=24, max_size=64),
)
def test_what_is_signed_verifies(body: bytes, key: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    headers = sign(body, key=read_secret(secret), webhook_id="id", timestamp=int(datetime.now(UTC).timestamp()))

    assert Webhook(secret).verify(body, headers) == json.loads(body)


@given(place=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_a_flipped_bit_does_not_verify(place: int, bit: int) -> None:
    made = sent(an_event("completed"))
    body = bytearray(made.body)
    body[place % len(body)] ^= 1 << bit

    with pytest.raises((WebhookVerificationError, UnicodeDecodeError)):
        Webhook(SECRET).verify(bytes(body), made.headers)


@pytest.mark.parametrize("header", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_changed_header_does_not_verify(header: str) -> None:
    made = sent(an_event("completed"))
    headers = {**made.headers, header: made.headers[header].translate(str.maketrans("0123456789ab", "1234567890ba"))}

    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(made.body, headers)


def test_what_nobody_asked_for_is_not_sent() -> None:
    now = datetime.now(UTC)

    assert delivery(an_event("failed"), a_subscribed_job("completed"), key=KEY, now=now) is None
    assert delivery(an_event("failed"), a_job(), key=None, now=now) is None


def test_without_a_secret_nothing_is_sent_unsigned() -> None:
    with pytest.raises(Unavailable, match="CINEVENT_WEBHOOK_SECRET"):
        delivery(an_event("failed"), a_subscribed_job("failed"), key=None, now=datetime.now(UTC))


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
def test_a_malformed_secret_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(Invalid, match="CINEVENT_WEBHOOK_SECRET"):
        read_secret(text)


@given(st.text(min_size=1, max_size=10))
def test_a_long_log_is_cut_at_its_head(words: str) -> None:
    error = {"code": "engine_crashed", "message": "died", "log_tail": f"{words * 20_000}the end"}

    made = sent(an_event("failed", error=error))

    cut: dict[str, Any] = json.loads(made.body)["data"]["error"]
    assert len(made.body) < 20_000
    assert error["log_tail"].endswith(cut["log_tail"])
    assert cut["log_tail"].endswith("the end")


@pytest.mark.parametrize(("status", "gone"), [(200, False), (204, False), (299, False), (410, True)])
def test_these_answers_end_a_delivery(status: int, gone: bool) -> None:
    assert is_gone(Answer(status=status)) is gone


@pytest.mark.parametrize("status", [0, 301, 307, 400, 401, 404, 408, 429, 500, 503])
def test_any_other_answer_brings_the_event_again(status: int) -> None:
    with pytest.raises(Unavailable, match=str(status) if status else "no answer") as caught:
        is_gone(Answer(status=status, text="TimeoutError"))

    assert caught.value.retry_after_s == 0


@pytest.mark.parametrize(
    ("status", "text", "seconds"), [(429, "7", 7), (503, "7", 7), (503, "9999", 3600), (500, "7", 0), (503, "soon", 0)]
)
def test_a_receiver_may_say_when(status: int, text: str, seconds: float) -> None:
    with pytest.raises(Unavailable) as caught:
        is_gone(Answer(status=status, retry_after=text))

    assert caught.value.retry_after_s == seconds
