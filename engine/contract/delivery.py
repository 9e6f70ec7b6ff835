"""A delivery: one event on its way to one endpoint, from its message to the record of its last attempt. Pure.

A delivery is a message in CINEVENT_WEBHOOKS that carries the bytes to send. Each attempt is written down as an event in
CINEVENT_DELIVERIES; the last one says how the delivery stands. `after` is the whole judgement: an answer comes in, what
is to be written and when the next attempt is comes out.
"""

import base64
import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import uuid4

from engine.contract.codec import encode, encode_binary
from engine.contract.errors import BadEvent, Problem
from engine.contract.events import Event

PREFIX = "io.cinevent.webhook."
DELIVERY = f"{PREFIX}delivery.v1"
ATTEMPT = f"{PREFIX}attempt.v1"
EXHAUSTED = f"{PREFIX}exhausted.v1"
STATUS = f"{PREFIX}status.v1"
TEST = f"{PREFIX}test.v1"
# The table of Standard Webhooks with three early steps before it, since a video takes minutes: 12 attempts in 76 hours.
WAITS_S = (5, 30, 120, 600, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
MAX_TRIES = len(WAITS_S) + 1
RETRY_AFTER_MAX_S = 24 * 3600.0
_JITTER = 0.2
# Standard Webhooks advises receivers to accept this much; only a log's tail can make an event larger.
_BODY_MAX_BYTES = 20_000
_GONE = 410


class State(StrEnum):
    """How a delivery stands after an attempt."""

    DELIVERED = "delivered"
    WAITING = "waiting"
    FAILED = "failed"
    DROPPED = "dropped"
    """News of progress that could not be delivered: newer news comes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One event on its way to one endpoint."""

    id: str
    tenant: str
    job: str
    endpoint: str
    url: str
    """Of the request that named it; empty for a standing endpoint, whose address may change meanwhile."""
    event: str
    """The short name of the event, such as `completed`."""
    event_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    """What is sent, the same bytes each time; empty for progress, which is read when it is sent."""
    number: int = 1
    """Of the attempt to come."""
    round: str = ""
    """Which round of attempts: empty for the first, a replay begins another one."""
    is_again: bool = False
    """Whether an alarm brings it: what it is to do may be done by now."""

    @property
    def is_progress(self) -> bool:
        """Whether only the newest news counts."""
        return self.event == "progress"

    def to_event(self) -> Event:
        """The message that carries it."""
        data = {name: getattr(self, name) for name in self.__slots__} | {"headers": dict(self.headers)}
        return _event(DELIVERY, data, tenant=self.tenant, subject=self.id, key=f"{self.id}-{self.number}")

    @classmethod
    def from_event(cls, event: Event) -> "Delivery":
        """Raises BadEvent for what is none."""
        try:
            if event.type != DELIVERY:
                raise ValueError(f"the type is {event.type}; allowed: {DELIVERY}")
            return cls(**{name: event.data[name] for name in cls.__slots__})
        except (KeyError, ValueError, TypeError) as error:
            raise BadEvent(Problem(pointer="/data", rule="delivery", message=f"not a delivery: {error}")) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What an endpoint answered to one attempt; status 0 if it said nothing."""

    status: int = 0
    retry_after_s: float | None = None
    error: str = ""
    """Why there is no answer."""
    answer: str = ""
    """The first bytes of the body."""
    ms: int = 0

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What one attempt leads to."""

    state: State
    next_at: datetime | None = None
    why: str = ""
    """Of a delivery that is given up."""


def delivery_id(tenant: str, endpoint: str, event_id: str) -> str:
    """The id of a delivery: the same event to the same endpoint has the same."""
    text = "\n".join((tenant, endpoint, event_id))
    return "d" + base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:25]


def is_delivery_id(text: str) -> bool:
    """Whether `text` has the form of one."""
    return len(text) == 26 and text[0] == "d" and set(text[1:]) <= set("abcdefghijklmnopqrstuvwxyz234567")


def deliver(event: Event, *, job: str, endpoint: str, url: str, form: str) -> Delivery:
    """The delivery of an event to an endpoint of its tenant, with its bytes in the form that the endpoint wants."""
    tenant = event.data["tenant"]
    # One delivery for all progress of a job: a newer one replaces it.
    key = f"{job}-progress" if event.name == "progress" else event.id
    headers, body = ({}, b"") if event.name == "progress" else event_bytes(event, form=form)
    return Delivery(
        id=delivery_id(tenant, endpoint, key),
        tenant=tenant,
        job=job,
        endpoint=endpoint,
        url=url,
        event=event.name,
        event_id=event.id,
        headers=headers,
        body=body.decode(),
    )


def event_bytes(event: Event, *, form: str) -> tuple[dict[str, str], bytes]:
    """Headers and body, below the limit: the head of the log's tail is left out as far as needed.

    In binary mode the signature does not cover the attributes, which are headers: the data repeats the two that decide
    what the event is about.
    """
    # Comparable across all events of a job, and the same each time; receivers compare it as text.
    sequence = f"{round(event.time.timestamp() * 1e6):020d}"
    event = replace(event, extensions={"sequence": sequence, **event.extensions})
    if form == "binary":
        event = replace(event, data={**event.data, "type": event.type, "subject": event.subject})
    write = encode_binary if form == "binary" else encode
    headers, body = write(event)
    error: Mapping[str, Any] = event.data.get("error") or {}
    tail = str(error.get("log_tail", ""))
    while len(body) >= _BODY_MAX_BYTES and tail:
        tail = tail[len(tail) // 2 + 1 :]
        headers, body = write(replace(event, data={**event.data, "error": {**error, "log_tail": tail}}))
    return headers, body


def after(delivery: Delivery, said: Said, *, now: datetime, time_scale: float) -> Judgement:
    """What an attempt's answer leads to; all waits are multiplied by `time_scale`."""
    if said.is_success:
        return Judgement(state=State.DELIVERED)
    if delivery.is_progress:
        return Judgement(state=State.DROPPED)
    if said.status == _GONE:
        return Judgement(state=State.FAILED, why="the endpoint is gone (410)")
    if delivery.number >= MAX_TRIES:
        return Judgement(state=State.FAILED, why=f"{delivery.number} attempts, the last one: {brief(said)}")
    wait_s = WAITS_S[delivery.number - 1] * random.uniform(1 - _JITTER, 1 + _JITTER)
    if said.status in (429, 503) and said.retry_after_s is not None:
        # Never earlier than it asked, and not all at once.
        wait_s = min(said.retry_after_s, RETRY_AFTER_MAX_S) * random.uniform(1.0, 1.0 + _JITTER / 2)
    return Judgement(state=State.WAITING, next_at=now + timedelta(seconds=wait_s * time_scale))


def brief(said: Said) -> str:
    """An answer in a few words."""
    hint = "; redirects are not followed" if 300 <= said.status < 400 else ""
    return f"HTTP {said.status}{hint}" if said.status else said.error


def attempt_event(delivery: Delivery, said: Said, judgement: Judgement) -> Event:
    """The record of one attempt."""
    data = {
        **_about(delivery),
        "number": delivery.number,
        "round": delivery.round,
        "state": judgement.state.value,
        "status": said.status,
        "ms": said.ms,
        "error": said.error,
        "answer": said.answer,
        "next_at": judgement.next_at.isoformat() if judgement.next_at else None,
        "why": judgement.why,
    }
    return _event(ATTEMPT, data, tenant=delivery.tenant, subject=delivery.id)


def exhausted_event(delivery: Delivery, why: str) -> Event:
    """Told once a delivery is given up."""
    data = {**_about(delivery), "number": delivery.number, "why": why}
    return _event(EXHAUSTED, data, tenant=delivery.tenant, subject=delivery.id)


def status_event(tenant: str, endpoint: str, *, state: str, since: datetime, why: str) -> Event:
    """The word about a standing endpoint: `healthy`, `failing` or `disabled`."""
    data = {"tenant": tenant, "endpoint": endpoint, "state": state, "since": since.isoformat(), "why": why}
    return _event(STATUS, data, tenant=tenant, subject=endpoint)


def test_event(tenant: str, endpoint: str) -> Event:
    """What a receiver gets when somebody wants to see whether it listens."""
    data = {"tenant": tenant, "endpoint": endpoint, "message": "a test: nothing happened"}
    return _event(TEST, data, tenant=tenant, subject=endpoint)


def _about(delivery: Delivery) -> dict[str, Any]:
    names = ("tenant", "job", "endpoint", "url", "event", "event_id")
    return {"delivery": delivery.id, **{name: getattr(delivery, name) for name in names}}


def _event(kind: str, data: Mapping[str, Any], *, tenant: str, subject: str, key: str = "") -> Event:
    return Event(
        id=key or uuid4().hex,
        source=f"/cinevent/{tenant}/webhooks",
        type=kind,
        time=datetime.now(UTC),
        subject=subject,
        data=data,
    )
