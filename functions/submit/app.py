"""submit: takes requests over HTTP, as JSON or as CloudEvents, and reads jobs. The edge; decisions are handler.py's.

A 202 is sent once the request is in the log. A CloudEvent is answered with an empty body (a body would be taken for a
reply event); its job is in `Location`.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import UnsupportedMediaType
from werkzeug.wsgi import wrap_file

from engine.adapters.deliveries import Deliveries
from engine.contract.codec import is_event, loads
from engine.contract.errors import Conflict, Invalid, NotFound
from engine.contract.events import Event, rivals
from engine.contract.job import Job, State, fold, is_id
from engine.contract.settings import Settings
from functions.deps import Deps, open_deps
from functions.submit import handler, uploads
from functions.submit.webhooks import Webhooks
from functions.web import empty, log_to_stderr, make_app, problem, read_event

# With the answer itself, under the second in which a caller wants to know that the log is away.
_DEADLINE_S = 0.8
_LINK_EXPIRES_S = 900


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The app with its clients from the environment; `app.extensions["deps"].close()` ends them."""
    log_to_stderr()
    return make(open_deps(Settings.read(environ)))


def make(deps: Deps) -> Flask:
    """The app over these clients. Raises Invalid."""
    app = make_app("submit", ping=deps.ping)
    app.extensions["deps"] = deps
    webhooks = Webhooks(deps.settings, Deliveries(deps.bus))
    generate = partial(_generate, check=webhooks.check)
    rules = (
        ("POST", "/", generate),
        ("POST", "/api/v1/generate", generate),
        ("GET", "/api/v1/jobs", _list),
        ("GET", "/api/v1/jobs/<job>", _get),
        ("POST", "/api/v1/jobs/<job>/cancel", _cancel),
        ("GET", "/api/v1/jobs/<job>/video", _video),
        ("PUT", "/api/v1/uploads/<name>", uploads.put),
    )
    for method, path, view in rules:
        app.add_url_rule(path, endpoint=f"{method} {path}", view_func=partial(view, deps), methods=[method])
    webhooks.add_to(app)
    return app


def _generate(deps: Deps, *, check: Callable[[Event], None]) -> Response:
    event = _requested(deps)
    check(event)
    if missing := uploads.missing(deps, event):
        return _without_upload(deps, event, missing)
    try:
        sequence = deps.bus.publish(event, first=rivals(event), deadline_s=_DEADLINE_S)
    except Conflict:
        return _repeated(deps, event)
    job = fold([(sequence, event)])
    assert job is not None
    return _accepted(deps, job)


def _repeated(deps: Deps, event: Event) -> Response:
    """The answer to a request whose job exists: the same as the first time, if it asks for the same."""
    job = deps.history.get(deps.settings.tenant, event.data["job"], deadline_s=_DEADLINE_S)
    if not handler.is_same_request(event, job):
        detail = "this key was used for another request; use a new key for a new request"
        return problem(422, "idempotency_key_reused", detail)
    response = _accepted(deps, job)
    response.headers["Idempotency-Replayed"] = "true"
    return response


def _without_upload(deps: Deps, event: Event, missing: Invalid) -> Response:
    """Uploads may be deleted once they were used; a repeat of what was accepted then is still answered with its job."""
    try:
        return _repeated(deps, event)
    except NotFound:
        raise missing from None


def _requested(deps: Deps) -> Event:
    """The event to publish for the current request. Raises Invalid."""
    tenant = deps.settings.tenant
    if is_event(dict(request.headers)):
        return handler.from_event(read_event(), tenant=tenant)
    if not request.is_json:
        raise UnsupportedMediaType("allowed: application/json, or a CloudEvent (docs/events.md); set the Content-Type")
    trace = {name: request.headers[name] for name in ("traceparent", "tracestate") if name in request.headers}
    key = request.headers.get("Idempotency-Key")
    return handler.from_json(loads(request.get_data()), tenant=tenant, key=key, extensions=trace)


def _accepted(deps: Deps, job: Job) -> Response:
    is_answer_empty = is_event(dict(request.headers))
    response = empty(202) if is_answer_empty else _job_response(deps, job, status=202)
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return response


def _list(deps: Deps) -> Response:
    limit = handler.limit_of(request.args.get("limit"))
    cursor = handler.cursor_of(request.args.get("cursor"))
    page = deps.history.page(deps.settings.tenant, limit=limit, before=cursor)
    jobs = [handler.job_json(job, base_url=deps.settings.public_url) for job in page.jobs]
    return jsonify(jobs=jobs, next_cursor=None if page.cursor is None else str(page.cursor))


def _get(deps: Deps, job: str) -> Response:
    return _job_response(deps, _find(deps, job), status=200)


def _cancel(deps: Deps, job: str) -> Response:
    found = _find(deps, job)
    if found.state in (State.COMPLETED, State.FAILED):
        return problem(409, "already_finished", f"job {job} is {found.state} and cannot be cancelled")
    if found.state is State.CANCELLED:
        return _job_response(deps, found, status=200)
    deps.bus.publish(handler.cancel(found), deadline_s=_DEADLINE_S)
    return _job_response(deps, _find(deps, job), status=202)


def _video(deps: Deps, job: str) -> Response:
    found = _find(deps, job)
    if found.state is not State.COMPLETED:
        return problem(409, "no_video", f"job {job} is {found.state}; there is a video when it is COMPLETED")
    video = found.outcome["artifacts"]["video"]
    if link := deps.store.link(video["key"], expires_s=_LINK_EXPIRES_S):
        return empty(302, Location=link)
    data = deps.store.open(video["key"])
    response = Response(wrap_file(request.environ, data), mimetype="video/mp4", direct_passthrough=True)
    response.content_length = video["size_bytes"]
    response.set_etag(video["sha256"])
    response.headers["Content-Disposition"] = f"inline; filename={found.id}.mp4"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.make_conditional(request, accept_ranges=True, complete_length=video["size_bytes"])
    return response


def _find(deps: Deps, job: str) -> Job:
    if not is_id(job):
        raise NotFound(f"there is no job {job[:40]}")
    return deps.history.get(deps.settings.tenant, job, deadline_s=_DEADLINE_S)


def _job_response(deps: Deps, job: Job, *, status: int) -> Response:
    response = jsonify(handler.job_json(job, base_url=deps.settings.public_url))
    response.status_code = status
    return response
