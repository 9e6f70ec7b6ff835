"""Deliveries and endpoints over HTTP: what became of them, send again, try out; and the keys that verify signatures.

Reads and new messages in the log only: notify sends, and may be at zero pods meanwhile (docs/decisions/0007).
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from flask import Flask, Response, jsonify, request

from engine.adapters.deliveries import Deliveries, Record
from engine.contract.address import refusal
from engine.contract.codec import loads
from engine.contract.delivery import State
from engine.contract.endpoint import Endpoint
from engine.contract.errors import Conflict, Invalid, NotFound, Problem
from engine.contract.events import Event
from engine.contract.job import is_id
from engine.contract.settings import Settings
from engine.contract.signature import key_set, public_key, read_private_key
from functions.directory import DISABLED, HEALTHY, Directory
from functions.submit.handler import cursor_of, limit_of

_SHOWN = ("delivery", "job", "endpoint", "url", "event", "event_id")
_ATTEMPT = ("number", "state", "status", "ms", "error", "answer", "next_at", "why")
_KEYS = "/.well-known/webhook-keys.json"


class Webhooks:
    """The routes, over one log and one directory."""

    def __init__(self, settings: Settings, deliveries: Deliveries) -> None:
        """Raises Invalid about settings that cannot be used."""
        self._tenant = settings.tenant
        self._deliveries = deliveries
        self._directory = Directory(settings, deliveries)
        self._policy = settings.webhook_policy()
        self._keys = key_set(_public_keys(settings), "CINEVENT_WEBHOOK_PUBLIC_KEYS")

    def add_to(self, app: Flask) -> None:
        """Serve them."""
        api = "/api/v1"
        rules = (
            ("GET", f"{api}/jobs/<job>/deliveries", self.of_job),
            ("GET", f"{api}/deliveries", self.page),
            ("GET", f"{api}/deliveries/<delivery>", self.get),
            ("POST", f"{api}/deliveries/<delivery>/replay", self.replay),
            ("GET", f"{api}/endpoints", self.endpoints),
            ("POST", f"{api}/endpoints/<name>/recover", self.recover),
            ("POST", f"{api}/endpoints/<name>/test", self.test),
            ("POST", f"{api}/endpoints/<name>/enable", self.enable),
            ("GET", _KEYS, self.keys),
        )
        for method, path, view in rules:
            app.add_url_rule(path, endpoint=f"{method} {path}", view_func=partial(view), methods=[method])

    def check(self, event: Event) -> None:
        """Refuse a `requested` event whose webhook could never be sent. Raises Invalid."""
        webhook = event.data["request"].get("webhook")
        if webhook and (why := refusal(webhook["url"], self._policy)):
            raise Invalid(Problem(pointer="/webhook/url", rule="address", message=f"webhooks may not go there: {why}"))

    def of_job(self, job: str) -> Response:
        """Every delivery of a job, each with its attempts."""
        if not is_id(job):
            raise NotFound(f"there is no job {job[:40]}")
        return jsonify(deliveries=_grouped(self._deliveries.of_job(self._tenant, job)))

    def page(self) -> Response:
        """Deliveries, the newest first, each with its last attempt."""
        found = self._deliveries.page(
            self._tenant,
            endpoint=_token(request.args.get("endpoint", "*")),
            state=_state(request.args.get("state", "")),
            limit=limit_of(request.args.get("limit")),
            before=cursor_of(request.args.get("cursor")),
        )
        cursor = None if found.cursor is None else str(found.cursor)
        return jsonify(deliveries=_grouped(found.records), next_cursor=cursor)

    def get(self, delivery: str) -> Response:
        """One delivery with its attempts."""
        return jsonify(_grouped(self._deliveries.attempts(self._tenant, delivery))[0])

    def replay(self, delivery: str) -> Response:
        """Send it again, under the same id."""
        last = self._deliveries.attempts(self._tenant, delivery)[-1]
        form = "structured"
        if not last.data["url"]:
            form = self._ready(last.data["endpoint"]).format
        self._deliveries.replay(last, form=form)
        return _accepted(delivery=delivery)

    def endpoints(self) -> Response:
        """The standing endpoints and how they do; no secrets, no headers of theirs."""
        names = ("name", "url", "events", "format", "rate_per_minute", "concurrency", "enabled", "handshake")
        return jsonify(
            endpoints=[
                {**{name: getattr(each, name) for name in names}, "status": dict(self._directory.status(each))}
                for each in self._directory.all(self._tenant)
            ]
        )

    def recover(self, name: str) -> Response:
        """Send again what failed since a time."""
        data = loads(request.get_data() or b"{}")
        since = _time(data.get("since") if isinstance(data, dict) else None)
        return _accepted(replayed=self._deliveries.recover(self._tenant, self._ready(name), since=since))

    def test(self, name: str) -> Response:
        """Send an event that says nothing."""
        return _accepted(delivery=self._deliveries.test(self._ready(name)).id)

    def enable(self, name: str) -> Response:
        """Send to an endpoint again that was disabled."""
        endpoint = self._directory.find(self._tenant, name)
        if not endpoint.enabled:
            raise Conflict(f"the endpoint {name!r} is disabled in the file; set enabled to true there")
        self._directory.say(endpoint, HEALTHY, since=datetime.now(UTC))
        return jsonify(name=name, status=dict(self._directory.status(endpoint)))

    def keys(self) -> Response:
        """The public keys of `v1a` signatures."""
        response = jsonify(self._keys)
        response.headers["Cache-Control"] = "public, max-age=300"
        return response

    def _ready(self, name: str) -> Endpoint:
        """An endpoint that is sent to. Raises NotFound, Conflict."""
        endpoint = self._directory.find(self._tenant, name)
        status = self._directory.status(endpoint)
        if not endpoint.enabled or status["state"] == DISABLED:
            why = status.get("why") or "in the file"
            raise Conflict(f"the endpoint {name!r} is disabled ({why}); enable it first")
        return endpoint


def _public_keys(settings: Settings) -> list[str]:
    given = [word.strip() for word in settings.webhook_public_keys.split(",") if word.strip()]
    private = [word.strip() for word in settings.webhook_signing_keys.split(",") if word.strip()]
    return given or [public_key(read_private_key(text, "CINEVENT_WEBHOOK_SIGNING_KEYS")) for text in private]


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
