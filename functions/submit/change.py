"""Changing a job: stop it, try it again as a new one, erase it."""

import logging

from flask import Response

from engine.contract.errors import Conflict
from engine.contract.events import job_subjects, rivals
from engine.contract.job import Job, State
from engine.contract.streams import alarm_subjects
from functions.submit import handler
from functions.submit.accept import accept
from functions.submit.reply import job_response
from functions.submit.route import DEADLINE_S, Answer, Call, Parameter, Route, ref
from functions.web import empty, problem

_LOG = logging.getLogger(__name__)


def cancel(call: Call, job: str) -> Response:
    """Stop a job: at once if no run was started, else as soon as its run has ended."""
    found = call.find(job)
    if found.state in (State.COMPLETED, State.FAILED):
        return problem(409, "already_finished", f"job {job} is {found.state} and cannot be cancelled")
    if found.state is State.CANCELLED:
        return job_response(call, found, status=200)
    # First the wish: whoever starts a run in this very moment then has to end it.
    call.deps.bus.publish(handler.cancel(found), deadline_s=DEADLINE_S)
    if found.attempt == 0:
        _end_unstarted(call, found)
    found = call.find(job)
    if found.state is State.COMPLETED:
        return problem(409, "already_finished", f"job {job} is {found.state} and cannot be cancelled")
    return job_response(call, found, status=200 if found.state is State.CANCELLED else 202)


def _end_unstarted(call: Call, job: Job) -> None:
    event = handler.cancelled(job)
    try:
        call.deps.bus.publish(event, first=rivals(event), deadline_s=DEADLINE_S)
    except Conflict:
        _LOG.info("job=%s has an outcome already; cancelled came too late", job.id)
    # If it was to start later, nothing is left to look at then.
    call.deps.bus.purge("CINEVENT_ALARMS", alarm_subjects(job.tenant, job.id)[0])


def retry(call: Call, job: str) -> Response:
    """Ask again for what a job was to make, as a new job. A repeat is answered with that job."""
    found = call.find(job)
    if found.state not in (State.FAILED, State.CANCELLED):
        detail = f"job {job} is {found.state}; only a job that is FAILED or CANCELLED can be tried again"
        return problem(409, "not_retryable", detail)
    following, is_new = accept(call, handler.again(found))
    assert following is not None
    response = job_response(call, following, status=202)
    response.headers["Location"] = f"/api/v1/jobs/{following.id}"
    if not is_new:
        response.headers["Idempotency-Replayed"] = "true"
    return response


def erase(call: Call, job: str) -> Response:
    """Remove a job that has ended, with all it made. What was begun and cut off may be repeated."""
    found = call.find(job)
    if not found.state.is_final:
        return problem(409, "not_finished", f"job {job} is {found.state}; cancel it first")
    _LOG.info("erasing job=%s tenant=%s by=%s", found.id, found.tenant, call.caller.name)
    for key in call.deps.store.list(f"{found.tenant}/{found.id}"):
        call.deps.store.delete(key)
    subjects = job_subjects(found.tenant, found.id)
    call.deps.bus.purge("CINEVENT_ALARMS", alarm_subjects(found.tenant, found.id)[0])
    call.deps.bus.purge("CINEVENT_DEAD", f"cinevent.dead.*.{found.tenant}.{found.id}.*")
    call.deps.bus.purge("CINEVENT_PROGRESS", subjects)
    # Last: while these stand, the job is found, and the rest can be erased once more.
    call.deps.bus.purge("CINEVENT_JOBS", subjects)
    return empty(204)


_JOB = Parameter(name="job", text="the job's id", schema=ref("JobId"), place="path")
_LOCATION = {"Location": "the new job", "Idempotency-Replayed": "true, if it was made by an earlier call"}

ROUTES = (
    Route(
        method="POST",
        path="/api/v1/jobs/<job>/cancel",
        view=cancel,
        text="Stop a job.",
        scope="write",
        group="jobs",
        parameters=(_JOB,),
        answers={
            200: Answer(text="it is CANCELLED", schema=ref("Job")),
            202: Answer(text="it will be, once its run has ended", schema=ref("Job")),
            409: Answer(text="it is COMPLETED or FAILED", schema=ref("Problem")),
        },
    ),
    Route(
        method="POST",
        path="/api/v1/jobs/<job>/retry",
        view=retry,
        text="Ask again for what a job was to make: a new job for the same request. A repeat gives the same new job.",
        scope="write",
        group="jobs",
        parameters=(_JOB,),
        answers={
            202: Answer(text="the new job", schema=ref("Job"), headers=_LOCATION),
            409: Answer(text="it is not FAILED or CANCELLED", schema=ref("Problem")),
            422: Answer(text="its picture is no longer there", schema=ref("Problem")),
            429: Answer(text="the tenant has as many jobs as it may have for now", schema=ref("Problem")),
        },
    ),
    Route(
        method="DELETE",
        path="/api/v1/jobs/<job>",
        view=erase,
        text="Erase a job that has ended: its artifacts and its events.",
        scope="write",
        group="jobs",
        parameters=(_JOB,),
        answers={
            204: Answer(text="there is nothing of it any more"),
            409: Answer(text="it has not ended", schema=ref("Problem")),
        },
    ),
)
