"""Deliveries and endpoints over HTTP: what became of them, send again, try out; and the keys that verify signatures.

Reads and new messages in the log only: notify sends, and may be at zero pods meanwhile (docs/decisions/0007).
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from flask import Response, jsonify, request

from engine.adapters.deliveries import Record
from engine.contract.codec import loads
from engine.contract.delivery import State
from engine.contract.errors import Conflict, Invalid, Problem
from functions.directory import HEALTHY
from functions.submit.handler import cursor_of, limit_of
from functions.submit.route import Answer, Call, Parameter, Route, ref
from functions.web import read_body

_SHOWN = ("delivery", "job", "endpoint", "url", "event", "event_id")
_ATTEMPT = ("number", "state", "status", "ms", "error", "answer", "next_at", "why")


def of_job(call: Call, job: str) -> Response:
    """Every delivery of a job, each with its attempts."""
    found = call.find(job)
    return jsonify(deliveries=_grouped(call.mail.deliveries.of_job(found.tenant, found.id)))


def page(call: Call) -> Response:
    """Deliveries, the newest first, each with its last attempt."""
    found = call.mail.deliveries.page(
        call.tenant,
        endpoint=_token(request.args.get("endpoint", "*")),
        state=_state(request.args.get("state", "")),
        limit=limit_of(request.args.get("limit")),
        before=cursor_of(request.args.get("cursor")),
    )
    cursor = None if found.cursor is None else str(found.cursor)
    return jsonify(deliveries=_grouped(found.records), next_cursor=cursor)


def get(call: Call, delivery: str) -> Response:
    """One delivery with its attempts."""
    return jsonify(_grouped(call.mail.deliveries.attempts(call.tenant, delivery))[0])


def replay(call: Call, delivery: str) -> Response:
    """Send it again, under the same id."""
    last = call.mail.deliveries.attempts(call.tenant, delivery)[-1]
    form = "structured"
    if not last.data["url"]:
        form = call.mail.ready(call.tenant, last.data["endpoint"]).format
    call.mail.deliveries.replay(last, form=form)
    return _accepted(delivery=delivery)


def endpoints(call: Call) -> Response:
    """The standing endpoints and how they do; no secrets, no headers of theirs."""
    names = ("name", "url", "events", "format", "rate_per_minute", "concurrency", "enabled", "handshake")
    directory = call.mail.directory
    return jsonify(
        endpoints=[
            {**{name: getattr(each, name) for name in names}, "status": dict(directory.status(each))}
            for each in directory.all(call.tenant)
        ]
    )


def recover(call: Call, name: str) -> Response:
    """Send again what failed since a time."""
    data = loads(read_body() or b"{}")
    since = _time(data.get("since") if isinstance(data, dict) else None)
    return _accepted(
        replayed=call.mail.deliveries.recover(call.tenant, call.mail.ready(call.tenant, name), since=since)
    )


def test(call: Call, name: str) -> Response:
    """Send an event that says nothing."""
    return _accepted(delivery=call.mail.deliveries.test(call.mail.ready(call.tenant, name)).id)


def enable(call: Call, name: str) -> Response:
    """Send to an endpoint again that was disabled."""
    directory = call.mail.directory
    endpoint = directory.find(call.tenant, name)
    if not endpoint.enabled:
        raise Conflict(f"the endpoint {name!r} is disabled in the file; set enabled to true there")
    directory.say(endpoint, HEALTHY, since=datetime.now(UTC))
    return jsonify(name=name, status=dict(directory.status(endpoint)))


def keys(call: Call) -> Response:
    """The public keys of `v1a` signatures."""
    response = jsonify(call.mail.keys)
    response.headers["Cache-Control"] = "public, max-age=300"
    return response


def _grouped(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Deliveries as the API shows them, in the order of their first record here."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        delivery = found.setdefault(record.delivery, {"attempts": []})
        attempt = {"time": record.time.isoformat().replace("+00:00", "Z"), **_part(record.data, _ATTEMPT)}
        about = {"id": record.delivery, **_part(record.data, _SHOWN[1:]), "state": record.data["state"]}
        found[record.delivery] = {**about, "attempts": [*delivery["attempts"], attempt]}
    return list(found.values())


def _part(data: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: data[name] for name in names}


def _accepted(**said: Any) -> Response:
    response = jsonify(said)
    response.status_code = 202
    return response


def _token(text: str) -> str:
    """An endpoint's name in a query; anything else would be a pattern of NATS."""
    if text == "*" or (text.replace("-", "").isalnum() and text.isascii() and len(text) <= 32):
        return text
    raise Invalid(Problem(pointer="/endpoint", rule="pattern", message=f"{text[:40]!r} is not the name of an endpoint"))


def _state(text: str) -> str:
    if text in ("", *State):
        return text
    message = f"state is {text[:40]!r}; allowed: {', '.join(State)}"
    raise Invalid(Problem(pointer="/state", rule="enum", message=message))


def _time(value: object) -> datetime:
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        time = datetime.min
    if time.tzinfo is None:
        message = f"since is {str(value)[:40]!r}; allowed: RFC 3339 with a time zone, such as 2026-11-20T10:00:00Z"
        raise Invalid(Problem(pointer="/since", rule="timestamp", message=message))
    return time


_DELIVERIES: dict[str, Any] = {"type": "object", "required": ["deliveries"]}
_TEXT = {"type": "string"}
_DELIVERY = Parameter(name="delivery", text="the delivery's id", schema=_TEXT, place="path")
_NAME = Parameter(name="name", text="of the endpoint", schema=_TEXT, place="path")
_OBJECT = {"type": "object"}
_BAD = Answer(text="a parameter breaks a rule", schema=ref("Problem"))
_DISABLED = Answer(text="the endpoint is disabled", schema=ref("Problem"))


def _route(method: str, path: str, view: Any, text: str, answers: dict[int, Answer], **more: Any) -> Route:
    return Route(
        method=method,
        path=f"/api/v1{path}",
        view=view,
        text=text,
        scope="read" if method == "GET" else "write",
        group="webhooks",
        answers=answers,
        **more,
    )


ROUTES = (
    _route(
        "GET",
        "/jobs/<job>/deliveries",
        of_job,
        "Every delivery of a job, with its attempts.",
        {200: Answer(text="the deliveries", schema=_DELIVERIES)},
        parameters=(Parameter(name="job", text="the job's id", schema=ref("JobId"), place="path"),),
    ),
    _route(
        "GET",
        "/deliveries",
        page,
        "Deliveries, the newest first, each with its last attempt.",
        {200: Answer(text="a page", schema=_DELIVERIES), 422: _BAD},
        parameters=(
            Parameter(name="endpoint", text="only those to this endpoint", schema=_TEXT),
            Parameter(name="state", text="only those in this state", schema={"enum": list(State)}),
            Parameter(name="limit", text="how many", schema={"type": "integer", "minimum": 1, "maximum": 100}),
            Parameter(name="cursor", text="the next_cursor of the last page", schema=_TEXT),
        ),
    ),
    _route(
        "GET",
        "/deliveries/<delivery>",
        get,
        "One delivery with its attempts.",
        {200: Answer(text="the delivery", schema=_OBJECT)},
        parameters=(_DELIVERY,),
    ),
    _route(
        "POST",
        "/deliveries/<delivery>/replay",
        replay,
        "Send a delivery again, under the same id.",
        {202: Answer(text="it will be sent", schema=_OBJECT), 409: _DISABLED},
        parameters=(_DELIVERY,),
    ),
    _route(
        "GET",
        "/endpoints",
        endpoints,
        "The standing endpoints and how they do.",
        {200: Answer(text="the endpoints", schema={"type": "object", "required": ["endpoints"]})},
    ),
    _route(
        "POST",
        "/endpoints/<name>/recover",
        recover,
        "Send again what failed since a time.",
        {
            202: Answer(text="how many will be sent", schema=_OBJECT),
            400: Answer(text="no JSON", schema=ref("Problem")),
            409: _DISABLED,
            413: Answer(text="the body is too large", schema=ref("Problem")),
            422: _BAD,
        },
        parameters=(_NAME,),
        body={
            "application/json": {
                "type": "object",
                "required": ["since"],
                "properties": {"since": {"type": "string", "format": "date-time"}},
            }
        },
    ),
    _route(
        "POST",
        "/endpoints/<name>/test",
        test,
        "Send an event that says nothing.",
        {202: Answer(text="it will be sent", schema=_OBJECT), 409: _DISABLED},
        parameters=(_NAME,),
    ),
    _route(
        "POST",
        "/endpoints/<name>/enable",
        enable,
        "Send to an endpoint again that was disabled.",
        {200: Answer(text="how it does", schema=_OBJECT), 409: _DISABLED},
        parameters=(_NAME,),
    ),
    Route(
        method="GET",
        path="/.well-known/webhook-keys.json",
        view=keys,
        text="The public keys of v1a signatures.",
        scope=None,
        group="webhooks",
        answers={200: Answer(text="a JSON Web Key Set", schema={"type": "object", "required": ["keys"]})},
    ),
)
