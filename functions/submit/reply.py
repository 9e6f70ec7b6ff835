"""Answers that more than one group of routes gives: a job, a file of the store."""

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from os import SEEK_END
from typing import Any, BinaryIO

from flask import Response, jsonify, request
from werkzeug.wsgi import wrap_file

from engine.contract.job import Job, State
from functions.submit.route import Call
from functions.submit.shown import FILES, etag, job_json, retry_after_s
from functions.web import empty

_LINK_EXPIRES_S = 900


def job_response(call: Call, job: Job, *, status: int, position: int | None = None) -> Response:
    """A job, with the headers that let its reader ask again cheaply and in time."""
    shown = job_json(job, base_url=call.base_url, now=datetime.now(UTC), position=position, urls=_urls(call, job))
    response = jsonify(shown)
    response.status_code = status
    response.set_etag(etag(shown))
    response.headers["Cache-Control"] = "no-cache"
    if (seconds := retry_after_s(job)) is not None:
        response.headers["Retry-After"] = str(seconds)
    return response


def file_response(call: Call, artifact: Mapping[str, Any], *, name: str, content_type: str) -> Response:
    """A file of the store: a redirect to where anybody may read it for a while, or its bytes, whole or a range.

    Raises NotFound if it is gone.
    """
    if link := call.deps.store.link(artifact["key"], expires_s=_LINK_EXPIRES_S):
        return empty(302, Location=link)
    data = call.deps.store.open(artifact["key"])
    with ExitStack() as on_error:
        on_error.enter_context(data)
        response = _served(data, artifact, name=name, content_type=content_type)
        on_error.pop_all()
    return response


def _served(data: BinaryIO, artifact: Mapping[str, Any], *, name: str, content_type: str) -> Response:
    """The bytes of an open file, or the range that the request names. Raises RequestedRangeNotSatisfiable."""
    # Of the file, not of the event: a preview may have been replaced by a newer one meanwhile.
    size_bytes = data.seek(0, SEEK_END)
    data.seek(0)
    response = Response(wrap_file(request.environ, data), mimetype=content_type, direct_passthrough=True)
    response.content_length = size_bytes
    if "sha256" in artifact:
        response.set_etag(artifact["sha256"])
    response.headers["Content-Disposition"] = f"inline; filename={name}"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.make_conditional(request, accept_ranges=True, complete_length=size_bytes)
    return response


def _urls(call: Call, job: Job) -> dict[str, str]:
    """Where anybody may read the artifacts for a while, if the store has such addresses."""
    if job.state is not State.COMPLETED:
        return {}
    keys = {name: job.outcome["artifacts"][name]["key"] for name in FILES}
    links = {name: call.deps.store.link(key, expires_s=_LINK_EXPIRES_S) for name, key in keys.items()}
    return {name: link for name, link in links.items() if link}
