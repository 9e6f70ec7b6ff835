"""notify's decisions as values: what is sent where, and what a receiver's answer means. No I/O."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache
from importlib.metadata import version
from typing import Any

from engine.contract.codec import STRUCTURED, encode
from engine.contract.errors import Unavailable
from engine.contract.events import Event
from engine.contract.job import Job
from functions.delivery import Answer, retry_after_s
from functions.notify.webhook import Delivery, sign

# Standard Webhooks advises receivers to accept this much; only a log's tail can make an event larger.
_BODY_MAX_BYTES = 20_000
# A receiver that asks for a longer wait is asked again after this.
_WAIT_MAX_S = 3600.0
_GONE = 410


def delivery(event: Event, job: Job, *, key: bytes | None, now: datetime) -> Delivery | None:
    """What to send for an outcome; None if the job's producer did not ask for it. Raises Unavailable without a key."""
    webhook = job.request.webhook
    if webhook is None or event.name not in webhook.events:
        return None
    if key is None:
        message = "webhooks cannot be signed: set CINEVENT_WEBHOOK_SECRET to whsec_ and the base64 of 24 to 64 bytes"
        raise Unavailable(message, retry_after_s=0)
    body = _body(event)
    signature = sign(body, key=key, webhook_id=event.id, timestamp=int(now.timestamp()))
    headers = {"content-type": STRUCTURED, "user-agent": f"cinevent/{_version()}", **signature}
    return Delivery(url=webhook.url, headers=headers, body=body)


def is_gone(answer: Answer) -> bool:
    """Whether the receiver is gone for good; False if it has the event. Raises Unavailable if it is to be asked again.

    `retry_after_s` is 0, for "as the source sees fit", unless the receiver named a time.
    """
    if 200 <= answer.status < 300 or answer.status == _GONE:
        return answer.status == _GONE
    if not answer.status:
        raise Unavailable(f"the webhook's receiver gave no answer: {answer.text}", retry_after_s=0)
    asked_s = retry_after_s(answer.retry_after, max_s=_WAIT_MAX_S) if answer.status in (429, 503) else None
    hint = "; redirects are not followed" if 300 <= answer.status < 400 else ""
    raise Unavailable(f"the webhook's receiver answered {answer.status}{hint}", retry_after_s=asked_s or 0)


def _body(event: Event) -> bytes:
    """The structured event, below the limit: the head of the log's tail is left out as far as needed."""
    _, body = encode(event)
    error: Mapping[str, Any] = event.data.get("error") or {}
    tail = str(error.get("log_tail", ""))
    while len(body) >= _BODY_MAX_BYTES and tail:
        tail = tail[len(tail) // 2 + 1 :]
        _, body = encode(replace(event, data={**event.data, "error": {**error, "log_tail": tail}}))
    return body


@cache
def _version() -> str:
    return version("function")
