"""Every error that Cinevent raises on purpose, in one tree.

    CineventError
      Invalid            the caller's mistake; carries one Problem per broken rule
        BadEvent         these bytes are not a CloudEvent that we accept
      Unauthorized       nobody knows who asks
      Forbidden          who asks may not do this
      NotFound           no such job, for this tenant
      Conflict           the log refused a conditional write: somebody was first
      Unavailable        a service we need does not answer; carries retry_after_s
      AtCapacity         no free place to run a job now; carries retry_after_s
      TooMany            the caller asks too much of us for now; carries a stable code and retry_after_s
      JobFailed          this job cannot be done; carries a stable code, and whether another attempt may help

A foreign exception is translated once, in the adapter that met it, `from` the original.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One broken rule of an input: where (RFC 6901 pointer), which rule, and what to change."""

    pointer: str
    rule: str
    message: str


class CineventError(Exception):
    """The root of the tree."""


class Invalid(CineventError):
    """The input breaks rules; `problems` names each of them."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{p.pointer or '/'}: {p.message}" for p in problems))


class BadEvent(Invalid):
    """Bytes that are not a CloudEvent we accept."""


class Unauthorized(CineventError):
    """There is no credential that is known and in force."""


class Forbidden(CineventError):
    """The credential is in force, but not for this."""


class NotFound(CineventError):
    """There is no such thing, for this tenant."""


class Conflict(CineventError):
    """The log refused a conditional write because another write came first."""


class _Later(CineventError):
    def __init__(self, message: str, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Unavailable(_Later):
    """A service we need does not answer; the same call may work after `retry_after_s`."""


class AtCapacity(_Later):
    """All places to run a job are taken; ask again after `retry_after_s`."""


class TooMany(_Later):
    """The caller has used up what it may have for now. `code` is stable: it says of what."""

    def __init__(self, message: str, *, code: str, retry_after_s: float) -> None:
        self.code = code
        super().__init__(message, retry_after_s=retry_after_s)


JOB_ERRORS: dict[str, str] = {
    "model_load_failed": "The model's weights are missing or damaged; whoever runs Cinevent must put them right. Not"
    " tried again.",
    "input_invalid": "The engine cannot make a video of this input; change the request. Not tried again.",
    "plan_invalid": "The processes that this installation gives to a job cannot share the model, or have too little"
    " memory for it; the message says what would fit. Ask for a smaller video or another model, or have the number of"
    " processes changed. Not tried again.",
    "out_of_memory": "A process ran out of memory; if it does so every time, ask for a smaller or shorter video. Tried"
    " again.",
    "engine_crashed": "The run ended without a word; the log tail may say why. Tried again.",
    "drained": "The run was told to end, as when its machine is needed for something else or goes away; it finished its"
    " step and left a checkpoint; it does not count among max_attempts. Tried again.",
    "stalled": "The run reached no new stage or step for CINEVENT_STALL_S seconds and was ended. Tried again.",
    "deadline_exceeded": "The job was not done deadline_s seconds after it was accepted, or due; allow more time,"
    " or ask for less. Not tried again.",
}
"""Stable codes of `retrying` and `failed` events: what each means and what to do. docs/events.md is made from this."""


class JobFailed(CineventError):
    """A job cannot be done. `code` is one of JOB_ERRORS; `retryable` says whether another attempt may help."""

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        self.code = code
        self.message = message
        self.retryable = retryable
        super().__init__(f"{code}: {message}")
