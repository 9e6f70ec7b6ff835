"""dispatch's one decision: given a job and its run, what is to be done now. Pure, level-based, the same from any cause.

A request, a cancel, an alarm: each only says that a job is to be looked at. What happens next follows from what is
true, not from what woke us; so a repeat, a loss or a crash between two steps is put right by the next look.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from engine.contract.job import Job
from functions.dispatch.launcher import Failure, Observation, Phase, Waiting

# The engine says it is done before it has closed everything; only a run that stays is ended by force.
_EXIT_S = 10.0
# No step takes thirty times its usual time, unless a rank hangs; the engine's own watch is at twenty and says more. The
# lower bound is for a machine that pauses, or a log that is restarted.
_STEPS_OF_PATIENCE = 30.0
_STEP_PATIENCE_S = 90.0


class Act(StrEnum):
    """The things that dispatch can do about a job."""

    NOTHING = "nothing"
    WAIT = "wait"
    """Look again at the next alarm."""
    SCHEDULE = "schedule"
    """Look again when the job may start."""
    LAUNCH = "launch"
    STOP = "stop"
    """End a run that nobody needs, or put it out of sight if it is over."""
    CANCEL = "cancel"
    """End the run, then say the job is cancelled."""
    RECOVER = "recover"
    """The run ended: take its result from the store, or else act on the failure."""
    RETRY = "retry"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """An act and what it needs."""

    act: Act
    attempt: int = 0
    failure: Failure | None = None
    waiting: Waiting | None = None


def decide(job: Job, run: Observation, *, now: datetime, stall_s: float) -> Decision:
    """What to do about `job`, whose current attempt's run is as observed."""
    if job.state.is_final:
        return _after_the_end(job, run, now)
    if job.cancel_requested:
        return Decision(act=Act.CANCEL)
    if now - job.due_at > timedelta(seconds=job.request.deadline_s):
        return Decision(act=Act.FAIL, failure=_too_late(job, run))
    # Nothing was started of an attempt that was only announced.
    is_to_start = job.attempt == 0 or run.phase is Phase.PUT_ASIDE
    if is_to_start or (run.phase is Phase.ABSENT and job.stage == "retrying"):
        return Decision(act=Act.SCHEDULE if now < job.due_at else Act.LAUNCH, attempt=max(1, job.attempt))
    if run.phase in (Phase.RUNNING, Phase.WAITING):
        failure = _stall(job, run, now, stall_s) or _waited_for(run, now)
        return after_failure(job, failure) if failure else Decision(act=Act.WAIT, waiting=run.waiting)
    failure = _lost() if run.phase is Phase.ABSENT else run.failure or _silent()
    return Decision(act=Act.RECOVER, failure=_drained() if job.stage == "drained" else failure)


def after_failure(job: Job, failure: Failure) -> Decision:
    """Another attempt if that may help and one is left, else the end."""
    if failure.retryable and job.attempt - job.drains < job.request.max_attempts:
        return Decision(act=Act.RETRY, attempt=job.attempt + 1, failure=failure)
    return Decision(act=Act.FAIL, failure=failure)


def _after_the_end(job: Job, run: Observation, now: datetime) -> Decision:
    if run.phase is Phase.ABSENT:
        return Decision(act=Act.NOTHING)
    assert job.finished_at is not None
    left = timedelta(seconds=_EXIT_S) - (now - job.finished_at)
    return Decision(act=Act.WAIT if run.phase is Phase.RUNNING and left > timedelta(0) else Act.STOP)


def _stall(job: Job, run: Observation, now: datetime, stall_s: float) -> Failure | None:
    if run.phase is not Phase.RUNNING:
        return None
    signs = [at for at in (run.launched_at, job.started_at, job.progress_at) if at is not None]
    if not signs or now - max(signs) <= timedelta(seconds=_patience_s(job, stall_s)):
        return None
    return Failure(code="stalled", message=f"the run showed no new stage or step for {stall_s:g} s and was ended")


def _waited_for(run: Observation, now: datetime) -> Failure | None:
    """What a run has become that did not come up in time."""
    why = run.waiting
    is_over = why is not None and now - why.since > timedelta(seconds=why.patience_s)
    return why.failure if why is not None and is_over else None


def _patience_s(job: Job, stall_s: float) -> float:
    """How long a run may be silent: as the steps say once there are any, for the other stages `stall_s`."""
    seconds_per_step = job.progress.get("seconds_per_step")
    if job.progress.get("stage") != "denoising" or seconds_per_step is None:
        return stall_s
    return min(stall_s, max(_STEP_PATIENCE_S, _STEPS_OF_PATIENCE * float(seconds_per_step)))


def _too_late(job: Job, run: Observation) -> Failure:
    message = f"the job was not done {job.request.deadline_s} s after it was due; its deadline_s says no longer"
    if run.waiting:
        message += f"; at last its run waited ({run.waiting.reason}): {run.waiting.message}"
    return Failure(code="deadline_exceeded", message=message, retryable=False)


def _lost() -> Failure:
    return Failure(code="run_lost", message="the run is gone: something other than dispatch deleted it")


def _drained() -> Failure:
    return Failure(code="drained", message="the run was told to end, and left a checkpoint for the next one")


def _silent() -> Failure:
    return Failure(code="engine_crashed", message="the run ended without a result and without an error")
