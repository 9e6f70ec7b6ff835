"""dispatch's one decision: given a job and its run, what is to be done now. Pure, level-based, the same from any cause.

A request, a cancel, an alarm: each only says that a job is to be looked at. What happens next follows from what is
true, not from what woke us; so a repeat, a loss or a crash between two steps is put right by the next look.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from engine.contract.job import Job
from functions.dispatch.launcher import Failure, Observation, Phase

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
    """End a run that nobody needs."""
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


def decide(job: Job, run: Observation, *, now: datetime, stall_s: float) -> Decision:
    """What to do about `job`, whose current attempt's run is as observed."""
    is_running = run.phase is Phase.RUNNING
    if job.state.is_final:
        assert job.finished_at is not None
        left = timedelta(seconds=_EXIT_S) - (now - job.finished_at)
        return Decision(act=(Act.WAIT if left > timedelta(0) else Act.STOP) if is_running else Act.NOTHING)
    if job.cancel_requested:
        return Decision(act=Act.CANCEL)
    if now - job.due_at > timedelta(seconds=job.request.deadline_s):
        message = f"the job was not done {job.request.deadline_s} s after it was due; its deadline_s says no longer"
        failure = Failure(code="deadline_exceeded", message=message, retryable=False)
        return Decision(act=Act.FAIL, failure=failure)
    if job.attempt == 0 or run.phase is Phase.ABSENT:
        is_due = now >= job.due_at
        return Decision(act=Act.LAUNCH, attempt=max(1, job.attempt)) if is_due else Decision(act=Act.SCHEDULE)
    if is_running:
        return after_failure(job, _stall(stall_s)) if _is_stalled(job, run, now, stall_s) else Decision(act=Act.WAIT)
    return Decision(act=Act.RECOVER, failure=_drained() if job.stage == "drained" else run.failure or _silent())


def after_failure(job: Job, failure: Failure) -> Decision:
    """Another attempt if that may help and one is left, else the end."""
    if failure.retryable and job.attempt - job.drains < job.request.max_attempts:
        return Decision(act=Act.RETRY, attempt=job.attempt + 1, failure=failure)
    return Decision(act=Act.FAIL, failure=failure)


def _is_stalled(job: Job, run: Observation, now: datetime, stall_s: float) -> bool:
    signs = [at for at in (run.launched_at, job.started_at, job.progress_at) if at is not None]
    return bool(signs) and now - max(signs) > timedelta(seconds=_patience_s(job, stall_s))


def _patience_s(job: Job, stall_s: float) -> float:
    """How long a run may be silent: as the steps say once there are any, for the other stages `stall_s`."""
    seconds_per_step = job.progress.get("seconds_per_step")
    if job.progress.get("stage") != "denoising" or seconds_per_step is None:
        return stall_s
    return min(stall_s, max(_STEP_PATIENCE_S, _STEPS_OF_PATIENCE * float(seconds_per_step)))


def _stall(stall_s: float) -> Failure:
    return Failure(code="stalled", message=f"the run showed no new stage or step for {stall_s:g} s and was ended")


def _drained() -> Failure:
    return Failure(code="drained", message="the run was told to end, and left a checkpoint for the next one")


def _silent() -> Failure:
    return Failure(code="engine_crashed", message="the run ended without a result and without an error")
