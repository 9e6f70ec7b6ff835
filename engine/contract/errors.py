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
        TenantAtCapacity no free place for this tenant's jobs
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


class TenantAtCapacity(AtCapacity):
    """All places of one tenant are taken; other tenants' jobs may have one."""


class TooMany(_Later):
    """The caller has used up what it may have for now. `code` is stable: it says of what."""

    def __init__(self, message: str, *, code: str, retry_after_s: float) -> None:
        self.code = code
        super().__init__(message, retry_after_s=retry_after_s)


JOB_ERRORS: dict[str, str] = {
    "model_load_failed": "The model's weights are missing or damaged; whoever runs Cinevent must put them right. Not"
    " tried again.",
    "lora_invalid": "A LoRA that the request names is not beside the model, or does not fit it; the message says which"
    " there are. Not tried again.",
    "input_invalid": "The engine cannot make a video of this input; change the request. Not tried again.",
    "plan_invalid": "The processes that this installation gives to a job cannot share the model, have too little"
    " memory for it, or lack something that its settings ask for; the message says what would fit, or what there is."
    " Ask for a smaller video or another model, or have the number of processes or the settings changed. Not tried"
    " again.",
    "out_of_memory": "A process ran out of memory; if it does so every time, ask for a smaller or shorter video. Tried"
    " again.",
    "engine_crashed": "The run ended without a word; the log tail may say why. Tried again.",
    "drained": "The run was told to end, as when its machine is needed for something else or goes away; it finished its"
    " step and left a checkpoint; it does not count among max_attempts. Tried again.",
    "stalled": "The run reached no new stage or step for CINEVENT_STALL_S seconds and was ended. Tried again.",
    "image_unavailable": "The engine's image could not be pulled for ten minutes; whoever runs Cinevent must correct"
    " its name or the access to its registry. Tried again.",
    "unschedulable": "No node, or no quota of Kueue's queue, had room for the run in a day; add GPUs, or correct what"
    " restricts it to certain nodes. Not tried again.",
    "quota_exceeded": "The namespace's ResourceQuota let the run have no pods for a day; raise it. Not tried again.",
    "queue_deactivated": "Kueue gave the run up, or somebody deactivated its workload; the message says why. Not tried"
    " again.",
    "run_misconfigured": "A pod of the run cannot start as it is described: a Secret, a ConfigMap, a volume or the"
    " command is not there; the message names it. Not tried again.",
    "run_stuck": "The run was accepted by the cluster and its pods did not come up in half an hour; look whether the"
    " training-operator runs, and at the events of the run and its pods. Tried again.",
    "launch_refused": "The cluster refused the run, by a rule of its own or because the overlay makes it invalid; the"
    " message has its words. Not tried again.",
    "run_lost": "The run is gone, and dispatch did not delete it. Tried again.",
    "evicted": "A pod of the run was taken away: its node was drained, or something more important needed it. Tried"
    " again.",
    "node_lost": "A node of the run does not answer any more. Tried again.",
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
