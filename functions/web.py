"""The edge that all functions share: a Flask app with health, CloudEvents in, and every error as problem+json.

In: HTTP. Out: an Event for the handler, or an answer made from an error of contract/errors.py (RFC 9457). It does not
know what any function does.
"""

import logging
import math
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from engine.contract import errors
from engine.contract.codec import decode
from engine.contract.events import Event
from engine.contract.schemas import validate

# A request is a few kilobytes; NATS refuses messages over 1 MiB.
MAX_BODY_BYTES = 2**20

_LOG = logging.getLogger(__name__)
_PROBLEMS: dict[type[errors.CineventError], tuple[int, str, str]] = {
    errors.BadEvent: (400, "malformed_event", "The body is not an event that is accepted here"),
    errors.Invalid: (422, "validation_failed", "The request breaks a rule"),
    errors.Unauthorized: (401, "unauthorized", "Nobody knows who asks"),
    errors.Forbidden: (403, "forbidden", "This is not allowed with this key"),
    errors.NotFound: (404, "not_found", "There is no such thing"),
    errors.Conflict: (409, "conflict", "Something else came first"),
    errors.TenantAtCapacity: (503, "tenant_at_capacity", "All places of this tenant are taken"),
    errors.AtCapacity: (429, "at_capacity", "All places are taken"),
    errors.TooMany: (429, "too_many", "This is more than is allowed for now"),
    errors.Unavailable: (503, "unavailable", "A service behind this one does not answer"),
}
"""Status, code and title by error; the first class that fits is taken."""


def make_app(name: str, *, ping: Callable[[], None]) -> Flask:
    """A Flask app with `/healthz` (alive), `/readyz` (ping passes) and the error mapper."""
    app = Flask(name, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]  # the default provider has it; the base class does not

    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="ok")

    @app.get("/readyz")
    def readyz() -> Response:
        ping()
        return jsonify(status="ok")

    app.register_error_handler(errors.CineventError, known_error)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, _unknown_error)
    return app


def log_to_stderr() -> None:
    """One line per thing that happened; for the top of a process."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)


def read_event(names: Collection[str] = ()) -> Event:
    """The CloudEvent in the current request, checked against the schema of its type.

    `names`: the job events that this function takes; none: the caller judges. Raises BadEvent.
    """
    event = validate(decode(dict(request.headers), read_body()))
    if names and event.name not in names:
        message = f"{current_app.name} takes {', '.join(sorted(names))}; this is {event.type}"
        raise errors.BadEvent(errors.Problem(pointer="/type", rule="enum", message=message))
    return event


def read_body() -> bytes:
    """The body of the current request. Raises RequestEntityTooLarge."""
    body = request.get_data()
    # A body in chunks ends at the limit without a word: werkzeug looks beyond it only when asked to read on.
    if request.content_length is None and len(body) >= (request.max_content_length or MAX_BODY_BYTES):
        raise RequestEntityTooLarge
    return body


def empty(status: int, **headers: str) -> Response:
    """An answer without a body and so without a type: what a CloudEvent's sender must get."""
    response = Response(status=status, headers=headers)
    del response.headers["Content-Type"]
    return response


def problem(status: int, code: str, detail: str, **more: Any) -> Response:
    """An RFC 9457 answer; `code` is stable."""
    title = more.pop("title", HTTPStatus(status).phrase)
    body = {"type": f"https://cinevent.io/problems/{code}", "title": title, "status": status, "code": code}
    response = jsonify({**body, "detail": detail, "instance": request.path, **more})
    response.status_code = status
    response.content_type = "application/problem+json"
    return response


def known_error(error: errors.CineventError) -> Response:
    """The RFC 9457 answer for an error of ours."""
    status, code, title = next(row for kind, row in _PROBLEMS.items() if isinstance(error, kind))
    more: dict[str, Any] = {"title": title}
    if isinstance(error, errors.Invalid):
        more["errors"] = [{"pointer": p.pointer, "rule": p.rule, "message": p.message} for p in error.problems]
        code = "malformed_json" if error.problems[0].rule == "json" else code
    if isinstance(error, errors.TooMany):
        code = error.code
    response = problem(status, code, str(error), **more)
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Bearer realm="cinevent"'
    if retry_after_s := getattr(error, "retry_after_s", None):
        response.headers["Retry-After"] = str(math.ceil(retry_after_s))
    return response


def http_error(error: HTTPException) -> Response:
    """The RFC 9457 answer for an error of the framework's."""
    status = error.code or 500
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return problem(413, "payload_too_large", f"the body is larger than {request.max_content_length} bytes")
    response = problem(status, HTTPStatus(status).name.lower(), error.description or "")
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
    return response


def _unknown_error(error: Exception) -> Response:
    # The top of the process: the text of an unforeseen exception is for the log, never for the caller.
    _LOG.error("unforeseen error on %s %s", request.method, request.path, exc_info=error)
    return problem(500, "internal", "an unforeseen error; the log of this function has it")
