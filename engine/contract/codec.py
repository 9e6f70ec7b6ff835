"""CloudEvents as bytes: the NATS form, the HTTP forms, and back. Pure.

NATS: structured JSON under `content-type: application/cloudevents+json`, never a `ce-specversion` header: the one form
that the NATS binding allows and that the Go SDK and Knative read. HTTP: binary to functions, structured to webhooks.
`decode` takes all of them, and header-less structured JSON. Required attributes are checked here, before the SDK sees
them: it would invent a missing id, and with it a second job.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.exceptions import CloudEventValidationError
from cloudevents.core.v1.event import CloudEvent

from engine.contract.errors import BadEvent, Problem
from engine.contract.events import Event
from engine.contract.rules import TIMESTAMP_RULE, read_timestamp

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_JSON_TYPE = re.compile(r"application/([\w.+-]+\+)?json\s*(;.*)?", re.IGNORECASE)
_REQUIRED = ("specversion", "id", "source", "type")
_KNOWN = (*_REQUIRED, "time", "subject", "dataschema", "datacontenttype")


def encode(event: Event) -> tuple[dict[str, str], bytes]:
    """Structured mode: (headers, body), for NATS and for webhooks."""
    message = to_structured_event(_to_sdk(event))
    return dict(message.headers), message.body


def encode_nats(event: Event) -> tuple[dict[str, str], bytes]:
    """The NATS form: structured, with the de-duplication id. A CloudEvent is unique by source AND id."""
    headers, body = encode(event)
    return {**headers, "Nats-Msg-Id": f"{event.source}#{event.id}"}, body


def encode_binary(event: Event) -> tuple[dict[str, str], bytes]:
    """HTTP binary mode: (headers, body)."""
    message = to_binary_event(_to_sdk(event))
    return dict(message.headers), message.body


def batch(structured: Iterable[bytes]) -> tuple[dict[str, str], bytes]:
    """HTTP batched mode of events that are written in structured mode: (headers, body)."""
    return {"content-type": BATCH}, b"[" + b",".join(structured) + b"]"


def decode(headers: Mapping[str, str], body: bytes) -> Event:
    """The event in a NATS or HTTP message of any accepted form. Raises BadEvent, and nothing else, for other bytes."""
    lower = {name.lower(): value for name, value in headers.items()}
    content_type = lower.get("content-type", "").strip().lower()
    if content_type.startswith("application/cloudevents-batch"):
        _refuse("", "batch", "a batch of events is not accepted here; send one event per request")
    if content_type.startswith("application/cloudevents") or "ce-specversion" not in lower:
        return _from_structured(body)
    return _from_binary(lower, body)


def decode_batch(headers: Mapping[str, str], body: bytes) -> list[Event]:
    """The events of a batch, or the one of a message in another form. Raises BadEvent with the place of a bad one."""
    content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    if not content_type.strip().lower().startswith("application/cloudevents-batch"):
        return [decode(headers, body)]
    items = loads(body)
    if not isinstance(items, list):
        _refuse("", "batch", "a batch of CloudEvents is a JSON array")
    found = []
    for index, item in enumerate(items):
        try:
            found.append(_from_attributes(item))
        except BadEvent as error:
            placed = (Problem(pointer=f"/{index}{p.pointer}", rule=p.rule, message=p.message) for p in error.problems)
            raise BadEvent(*placed) from error
    return found


def loads(body: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN, Infinity or 1e400, no lone surrogates, no bottomless nesting. Raises BadEvent."""
    try:
        text = body.decode()
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        # RecursionError: thousands of open brackets are a few kilobytes.
        _refuse("", "json", f"the body is not JSON: {_brief(error)}")
    return value


def is_event(headers: Mapping[str, str]) -> bool:
    """Whether an HTTP request's headers announce a CloudEvent, in either mode or in a batch."""
    lower = {name.lower(): value for name, value in headers.items()}
    return lower.get("content-type", "").lower().startswith("application/cloudevents") or any(
        name.startswith("ce-") for name in lower
    )


def _to_sdk(event: Event) -> CloudEvent:
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": event.time,
        "datacontenttype": "application/json",
    }
    optional = {"subject": event.subject, "dataschema": event.dataschema}
    attributes |= {name: value for name, value in optional.items() if value is not None}
    return CloudEvent({**attributes, **event.extensions}, dict(event.data))


def _from_structured(body: bytes) -> Event:
    return _from_attributes(loads(body))


def _from_attributes(attributes: Any) -> Event:
    if not isinstance(attributes, dict):
        _refuse("", "type", "a CloudEvent in structured mode is a JSON object")
    if "data_base64" in attributes:
        _refuse("/data_base64", "data", "data must be a JSON object in `data`, not base64")
    # A JSON null is an absent attribute (CloudEvents JSON format, section 2.2).
    given = {name: value for name, value in attributes.items() if name != "data" and value is not None}
    return _event(given, attributes.get("data"))


def _from_binary(headers: Mapping[str, str], body: bytes) -> Event:
    attributes: dict[str, Any] = {
        name[3:]: _unquote(name, value) for name, value in headers.items() if name.startswith("ce-")
    }
    if "content-type" in headers:
        attributes["datacontenttype"] = headers["content-type"]
    return _event(attributes, loads(body))


def _event(attributes: dict[str, Any], data: Any) -> Event:
    _check_attributes(attributes)
    if not isinstance(data, dict):
        _refuse("/data", "data", "data must be a JSON object")
    time = _time(attributes.pop("time", None))
    extensions = {name: _text(value) for name, value in attributes.items() if name not in _KNOWN}
    known = {name: attributes[name] for name in _KNOWN if name in attributes}
    try:
        CloudEvent({**known, **extensions, "time": time}, data)
    except CloudEventValidationError as error:
        reasons = [str(reason) for reasons in error.errors.values() for reason in reasons]
        _refuse("", "attribute", "; ".join(reasons)[:500])
    return Event(
        id=known["id"],
        source=known["source"],
        type=known["type"],
        time=time,
        subject=known.get("subject"),
        dataschema=known.get("dataschema"),
        data=data,
        extensions=extensions,
    )


def _check_attributes(attributes: Mapping[str, Any]) -> None:
    for name in _REQUIRED:
        if not attributes.get(name):
            every = ", ".join(_REQUIRED)
            _refuse(f"/{name}", "required", f"the CloudEvents attribute {name!r} is missing; every event needs {every}")
    for name, value in attributes.items():
        _check_value(name, value)
    if attributes["specversion"] != "1.0":
        _refuse("/specversion", "const", f"specversion is {attributes['specversion']!r}; allowed: 1.0")
    media_type = attributes.get("datacontenttype", "application/json")
    if not _JSON_TYPE.fullmatch(media_type):
        _refuse("/datacontenttype", "media_type", f"the data is {media_type!r}; allowed: application/json")


def _check_value(name: str, value: Any) -> None:
    # The whole name: the SDK lets "x\n" pass, and in binary mode that is a header of the sender's choice.
    if not re.fullmatch(r"[a-z0-9]+", name):
        _refuse(f"/{name}", "name", f"{name[:40]!r} cannot name a CloudEvents attribute; allowed: a-z and 0-9")
    if not isinstance(value, str if name in _KNOWN else str | int):
        allowed = "a string" if name in _KNOWN else "a string, an integer or a boolean"
        _refuse(f"/{name}", "type", f"the CloudEvents attribute {name!r} must be {allowed}")
    # CloudEvents, section "String": no control characters, in any attribute.
    if isinstance(value, str) and re.search(r"[\x00-\x1f\x7f-\x9f]", value):
        _refuse(f"/{name}", "control_characters", f"the CloudEvents attribute {name!r} has control characters")


def _time(value: str | None) -> datetime:
    if value is None:
        return datetime.now(UTC)
    try:
        return read_timestamp(value)
    except ValueError:
        _refuse("/time", "timestamp", f"time is {value[:40]!r}; {TIMESTAMP_RULE}")


def _text(value: str | int) -> str:
    """The canonical string of an attribute value (CloudEvents, section "Type System")."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _unquote(name: str, value: str) -> str:
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode()
    except ValueError:
        _refuse(f"/{name[3:]}", "percent_encoding", f"the header {name} is not percent-encoded UTF-8")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        # It would be written out again as Infinity, which is not JSON.
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _brief(error: BaseException) -> str:
    return str(error)[:200] if not isinstance(error, RecursionError) else "it is nested too deeply"


def _refuse(pointer: str, rule: str, message: str) -> NoReturn:
    raise BadEvent(Problem(pointer=pointer, rule=rule, message=message))
