"""Submit: a request becomes a job. JSON, a form with a picture, a CloudEvent in binary or structured mode, or a batch.

A 202 is sent once the request is in the log. A CloudEvent is answered with an empty body (a body would be taken for a
reply event); its job is in `Location`.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from flask import Response, jsonify, request
from werkzeug.exceptions import UnsupportedMediaType

from engine.contract.codec import BATCH, STRUCTURED, decode_batch, is_event, loads
from engine.contract.errors import Conflict, Invalid, NotFound, Problem, TooMany
from engine.contract.events import Event, rivals
from engine.contract.job import Job, fold
from functions.submit import handler, uploads
from functions.submit.fetch import with_upload
from functions.submit.follow import await_end
from functions.submit.limits import check_limits
from functions.submit.reply import job_response
from functions.submit.route import DEADLINE_S, Answer, Call, Parameter, Route, ref
from functions.web import empty, problem, read_body, read_event

_FORM = "multipart/form-data"


def generate(call: Call) -> Response:
    """Accept what the body asks for."""
    if request.mimetype == BATCH:
        return _batch(call)
    event = _requested(call)
    job, is_new = accept(call, event)
    if job is None:
        return _reused()
    return _accepted(call, job, is_new=is_new)


def accept(call: Call, event: Event) -> tuple[Job | None, bool]:
    """Put a `requested` event into the log; its job, and whether it is new. No job: the id has another request.

    Raises Invalid (the picture is missing), TooMany, Unavailable.
    """
    try:
        call.mail.check(event)
        uploads.check(call, event)
        check_limits(call)
    except (Invalid, TooMany) as error:
        return _known(call, event, error)
    try:
        sequence = call.deps.bus.publish(event, first=rivals(event), deadline_s=DEADLINE_S)
    except Conflict:
        return _repeated(call, event)
    call.counter.accepted(call.tenant)
    return fold([(sequence, event)]), True


def _batch(call: Call) -> Response:
    """All events of a batch, or none of them: a rule is broken before anything is written."""
    now = datetime.now(UTC)
    handler.key_of(request.headers.get("Idempotency-Key"))
    given = [_with_upload(call, event) for event in decode_batch(dict(request.headers), read_body())]
    events = handler.from_batch(given, tenant=call.tenant, now=now)
    jobs = []
    for index, event in enumerate(events):
        job, _ = accept(call, event)
        if job is None:
            message = "this source and id were used for another request"
            raise Invalid(Problem(pointer=f"/{index}/id", rule="idempotency_key_reused", message=message))
        jobs.append(job)
    response = jsonify(jobs=[{"id": job.id, "location": f"/api/v1/jobs/{job.id}"} for job in jobs])
    response.status_code = 202
    return response


def _repeated(call: Call, event: Event) -> tuple[Job | None, bool]:
    """The answer to a request whose job exists: the same as the first time, if it asks for the same."""
    job = call.deps.history.get(call.tenant, event.data["job"], deadline_s=DEADLINE_S)
    return (job, False) if handler.is_same_request(event, job) else (None, False)


def _known(call: Call, event: Event, refusal: Invalid | TooMany) -> tuple[Job | None, bool]:
    """What was accepted before is answered with its job, though it would be refused now: its picture may be gone."""
    try:
        return _repeated(call, event)
    except NotFound:
        raise refusal from None


def _requested(call: Call) -> Event:
    """The event to publish for the current request. Raises Invalid."""
    now = datetime.now(UTC)
    key = handler.key_of(request.headers.get("Idempotency-Key"))
    if is_event(dict(request.headers)):
        return handler.from_event(_with_upload(call, read_event()), tenant=call.tenant, now=now)
    data = with_upload(call, _body(call))
    return handler.from_json(data, tenant=call.tenant, key=key, extensions=trace(), now=now)


def _with_upload(call: Call, event: Event) -> Event:
    data = with_upload(call, event.data)
    return event if data is event.data else replace(event, data=data)


def trace() -> dict[str, str]:
    """The trace context of the current request."""
    return {name: request.headers[name] for name in ("traceparent", "tracestate") if name in request.headers}


def _body(call: Call) -> Any:
    if request.mimetype == _FORM:
        return _from_form(call)
    if not request.is_json:
        allowed = f"application/json, {_FORM}, {STRUCTURED}, {BATCH}"
        raise UnsupportedMediaType(f"allowed: {allowed} (docs/events.md); set the Content-Type")
    return loads(read_body())


def _from_form(call: Call) -> Any:
    """The JSON of the field `request`, with the picture of the field `image` as an upload."""
    uploads.allow_picture()
    text = request.form.get("request")
    if text is None:
        message = "the form has no field `request`; it is the JSON of the request, beside the file `image`"
        raise Invalid(Problem(pointer="/request", rule="required", message=message))
    data = loads(text.encode(errors="surrogatepass"))
    picture = request.files.get("image")
    if picture is not None and isinstance(data, dict) and isinstance(data.get("input"), dict):
        data["input"]["image"] = uploads.take(call, picture.stream)
    return data


def _accepted(call: Call, job: Job, *, is_new: bool) -> Response:
    waits_s = handler.wait_s(request.headers.get("Prefer", ""))
    applied = "respond-async"
    if waits_s and await_end(call, job, timeout_s=waits_s):
        job, applied = call.find(job.id), f"wait={waits_s}"
    status = 200 if applied != "respond-async" and job.state.is_final else 202
    response = empty(status) if is_event(dict(request.headers)) else job_response(call, job, status=status)
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    if "Prefer" in request.headers:
        response.headers["Preference-Applied"] = applied
    if not is_new:
        response.headers["Idempotency-Replayed"] = "true"
    return response


def _reused() -> Response:
    detail = "this key was used for another request; use a new key for a new request"
    return problem(422, "idempotency_key_reused", detail)


_LIMITED = {
    "RateLimit-Policy": "the tenant's limit, if it has one",
    "RateLimit": "how much of it is left, and for how many seconds",
}
_REQUEST: dict[str, Any] = ref("Request")
_EVENT: dict[str, Any] = ref("RequestEvent")
_ANSWERS = {
    200: Answer(text="the job, which ended while the caller waited", schema=ref("Job")),
    202: Answer(
        text="accepted: the job; empty for a CloudEvent, a list for a batch",
        schema={"oneOf": [ref("Job"), ref("Accepted")]},
        headers={
            "Location": "the job",
            "Idempotency-Replayed": "true, if an earlier call made the job",
            "Preference-Applied": "what became of Prefer",
            **_LIMITED,
        },
    ),
    400: Answer(text="no JSON, or no CloudEvent that is taken here", schema=ref("Problem")),
    413: Answer(text="the body is too large", schema=ref("Problem")),
    415: Answer(text="another media type", schema=ref("Problem")),
    422: Answer(text="it breaks a rule, or the key was used for another request", schema=ref("Problem")),
    429: Answer(text="the tenant has as many jobs as it may have for now", schema=ref("Problem"), headers=_LIMITED),
}


def _route(path: str, answers: Mapping[int, Answer]) -> Route:
    header = {"type": "string"}
    return Route(
        method="POST",
        path=path,
        view=generate,
        text="Ask for a video.",
        scope="write",
        group="submit",
        parameters=(
            Parameter(
                name="Idempotency-Key",
                text="the same key never makes a second job",
                schema={"type": "string", "minLength": 1, "maxLength": 255},
                place="header",
            ),
            Parameter(name="Prefer", text="wait=N: at most N seconds for its end", schema=header, place="header"),
        ),
        body={
            "application/json": _REQUEST,
            STRUCTURED: _EVENT,
            BATCH: {"type": "array", "minItems": 1, "maxItems": handler.BATCH_MAX_EVENTS, "items": _EVENT},
            _FORM: {
                "type": "object",
                "required": ["request"],
                "properties": {
                    "request": {"type": "string", "contentMediaType": "application/json"},
                    "image": {"type": "string", "format": "binary"},
                },
            },
        },
        answers=answers,
    )


# The address of a Knative sink: events come here, and are answered with nothing in the body.
_SINK = {**_ANSWERS, 202: replace(_ANSWERS[202], schema=None), 200: replace(_ANSWERS[200], schema=None)}
ROUTES = (_route("/api/v1/generate", _ANSWERS), _route("/", _SINK))
