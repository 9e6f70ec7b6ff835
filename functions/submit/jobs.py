"""Reading jobs: one, with an answer that can be asked for again cheaply, and a page of the newest."""

from datetime import UTC, datetime

from flask import Response, jsonify, request

from engine.contract.errors import Invalid, Problem
from engine.contract.job import State
from functions.submit import handler
from functions.submit.catalog import position
from functions.submit.follow import await_end
from functions.submit.reply import job_response
from functions.submit.route import Answer, Call, Parameter, Route, ref
from functions.submit.shown import job_json


def get(call: Call, job: str) -> Response:
    """A job as it stands now, or once it has ended, if the caller prefers to wait."""
    found = call.find(job)
    waits_s = handler.wait_s(request.headers.get("Prefer", ""))
    if waits_s and not found.state.is_final and await_end(call, found, timeout_s=waits_s):
        found = call.find(job)
    place = position(call, found) if found.state is State.PENDING and found.attempt == 0 else None
    response = job_response(call, found, status=200, position=place)
    response.make_conditional(request)
    return response


def page(call: Call) -> Response:
    """Jobs, the newest first."""
    limit = handler.limit_of(request.args.get("limit"))
    cursor = handler.cursor_of(request.args.get("cursor"))
    _refuse_twice()
    query = handler.query_of(request.args.to_dict())
    found = call.deps.history.page(call.tenant, limit=limit, before=cursor, query=query)
    now = datetime.now(UTC)
    jobs = [job_json(job, base_url=call.base_url, now=now) for job in found.jobs]
    return jsonify(jobs=jobs, next_cursor=None if found.cursor is None else str(found.cursor))


def _refuse_twice() -> None:
    for name, values in request.args.lists():
        if len(values) > 1:
            raise Invalid(Problem(pointer=f"/{name[:80]}", rule="twice", message="given more than once; give it once"))


_JOB = Parameter(name="job", text="the job's id", schema=ref("JobId"), place="path")
_TIME = {"type": "string", "format": "date-time"}
_TEXT = {"type": "string"}

ROUTES = (
    Route(
        method="GET",
        path="/api/v1/jobs",
        view=page,
        text="Jobs, the newest first. A page may be short and yet have a cursor: go on from there.",
        scope="read",
        group="jobs",
        parameters=(
            Parameter(
                name="limit", text="how many", schema={"type": "integer", "minimum": 1, "maximum": 100, "default": 20}
            ),
            Parameter(name="cursor", text="the next_cursor of the last page", schema={"type": "string"}),
            Parameter(name="state", text="only jobs in this state", schema={"enum": list(State)}),
            Parameter(name="model", text="only jobs of this model", schema=ref("Model")),
            Parameter(name="created_after", text="only jobs accepted since", schema=_TIME),
            Parameter(name="created_before", text="only jobs accepted before", schema=_TIME),
            Parameter(
                name="metadata",
                text="only jobs with these labels: metadata.order=7",
                schema={"type": "object", "additionalProperties": _TEXT},
            ),
        ),
        answers={
            200: Answer(text="a page", schema=ref("Page")),
            422: Answer(text="a parameter breaks a rule", schema=ref("Problem")),
        },
    ),
    Route(
        method="GET",
        path="/api/v1/jobs/<job>",
        view=get,
        text="One job.",
        scope="read",
        group="jobs",
        parameters=(
            _JOB,
            Parameter(name="If-None-Match", text="the ETag that the reader has", schema=_TEXT, place="header"),
            Parameter(name="Prefer", text="wait=N: at most N seconds for its end", schema=_TEXT, place="header"),
        ),
        answers={
            200: Answer(
                text="the job",
                schema=ref("Job"),
                headers={"ETag": "differs when the job does", "Retry-After": "seconds; absent once it has ended"},
            ),
            304: Answer(text="the reader has it as it is"),
        },
    ),
)
