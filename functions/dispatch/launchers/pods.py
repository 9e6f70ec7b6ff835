"""What pods say: why they are not up, and why one failed. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from functions.dispatch.launcher import Failure, Waiting

_MINUTE_S, _HOUR_S = 60.0, 3600.0
_MESSAGE_MAX_CHARACTERS = 300
_TAIL_MAX_CHARACTERS = 3000

_WAITS: dict[str, tuple[float, str, bool]] = {
    # Somebody else's videos take that long; the job's own deadline_s is most often shorter.
    "queued": (24 * _HOUR_S, "unschedulable", False),
    "quota": (24 * _HOUR_S, "quota_exceeded", False),
    "unschedulable": (24 * _HOUR_S, "unschedulable", False),
    # A registry may be away for a while; another attempt asks it once more.
    "image": (10 * _MINUTE_S, "image_unavailable", True),
    # Long enough for somebody to make the Secret that is missing; the other pods hold their GPUs meanwhile.
    "config": (10 * _MINUTE_S, "run_misconfigured", False),
    # An image of 20 GB, and a volume that moves from another node.
    "starting": (30 * _MINUTE_S, "run_stuck", True),
    "no_pods": (30 * _MINUTE_S, "run_stuck", True),
}
"""Patience in seconds, then the failure's code, and whether another attempt may help."""

_HINTS = {
    "queued": "wait, or give its Kueue queue more quota",
    "quota": "raise the namespace's ResourceQuota, or have CINEVENT_MAX_RUNS lowered to what fits into it",
    "unschedulable": "add nodes with free GPUs, or correct the node selector and tolerations of CINEVENT_RUN_OVERLAY",
    "image": "correct CINEVENT_ENGINE_IMAGE, or add the registry's imagePullSecrets by CINEVENT_RUN_OVERLAY",
    "config": "make the Secret, ConfigMap or volume that the message names, or correct CINEVENT_RUN_OVERLAY",
    "starting": "look at the pod's events for volumes or images that do not come",
    "no_pods": "look whether the training-operator runs, and at the run's events",
}

_IMAGE_MAY_COME = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ErrImageNeverPull"})
_NO_SUCH_IMAGE = frozenset({"InvalidImageName"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_CANNOT_START = frozenset({"StartError", "ContainerCannotRun"})
_NODE_GONE = ("DeletionByTaintManager", "NodeLost", "NodeShutdown")
_TAKEN_AWAY = frozenset({"Evicted", "Preempting", "Terminated", "NodeAffinity", "NodeLost", "NodeShutdown"})
# A pod that is to be gone, and whose node does not confirm it, this long after its grace period.
_CONFIRM_S = 30.0


def waiting(reason: str, message: str, *, since: str | datetime, patience_s: float | None = None) -> Waiting:
    """A waiting with what it becomes when it lasts; its patience is the table's unless it is given."""
    usual_s, code, retryable = _WAITS[reason]
    text = _brief(message)
    message = f"the run never started: {text}; {_HINTS[reason]}"
    return Waiting(
        reason=reason,
        message=text,
        since=since if isinstance(since, datetime) else _time(since),
        patience_s=usual_s if patience_s is None else patience_s,
        failure=Failure(code=code, message=message, retryable=retryable and patience_s != 0),
    )


def why_waiting(pods: Sequence[Mapping[str, Any]]) -> Waiting | None:
    """Why these are not all up: what needs somebody's hand before what passes by itself. None if they are."""
    found = [why for pod in pods if (why := _why(pod)) is not None]
    return min(found, key=lambda why: why.patience_s, default=None)


def launched_at(pods: Sequence[Mapping[str, Any]]) -> datetime | None:
    """When the last container of these began; None while one has not."""
    begun = [_begun(pod) for pod in pods]
    return max((at for at in begun if at), default=None) if all(begun) else None


def failure(pods: Sequence[Mapping[str, Any]]) -> Failure | None:
    """Why these failed, from the telling one among them; None if none did."""
    found = sorted((_rank(pod), index) for index, pod in enumerate(pods) if failed_at(pod))
    return _failure(pods[found[0][1]]) if found else None


def gone(num_gone: int, num_nodes: int) -> Failure:
    """The end of a run whose pods do not exist any more."""
    message = f"{num_gone} of its {num_nodes} pods are gone: a drained node, a preemption, or somebody deleted them"
    return Failure(code="evicted", message=message)


def failed_at(pod: Mapping[str, Any]) -> datetime | None:
    """When the pod failed; None if it did not."""
    status = pod.get("status", {})
    if status.get("phase") != "Failed":
        return None
    ends = [_time(end["finishedAt"]) for end in _ends(pod) if end.get("finishedAt")]
    return max(ends, default=_time(pod["metadata"]["creationTimestamp"]))


def node_lost(pods: Sequence[Mapping[str, Any]], *, now: datetime) -> Failure | None:
    """Whether the node of one of these is gone: it was to end, and nobody confirms that it has.

    deletionTimestamp has the grace period in it. A Job would wait for such pods for ever.
    """
    limit = now - timedelta(seconds=_CONFIRM_S)
    for pod in pods:
        deleted = pod["metadata"].get("deletionTimestamp")
        if deleted and _time(deleted) < limit and pod.get("status", {}).get("phase") not in ("Failed", "Succeeded"):
            node = pod.get("spec", {}).get("nodeName", "its node")
            message = f"{node} does not answer: pod {pod['metadata']['name']} was to end and nobody confirms it"
            return Failure(code="node_lost", message=message)
    return None


def deadline_exceeded(message: str) -> Failure:
    """The end that a deadline makes of a run."""
    text = f"the run was ended at its deadline: {_brief(message)}; allow more time with deadline_s, or ask for less"
    return Failure(code="deadline_exceeded", message=text, retryable=False)


def seconds(since: str, now: datetime) -> float:
    """From a time of the API server to `now`."""
    return (now - _time(since)).total_seconds()


def _why(pod: Mapping[str, Any]) -> Waiting | None:
    created = pod["metadata"]["creationTimestamp"]
    scheduled = _condition(pod, "PodScheduled")
    since = scheduled.get("lastTransitionTime") or created
    if scheduled.get("status") == "False":
        return waiting("unschedulable", scheduled.get("message", "no node has room for it"), since=since)
    for container in _containers(pod):
        if why := _why_container(container.get("state", {}).get("waiting", {}), since=since):
            return why
    phase = pod.get("status", {}).get("phase", "Pending")
    if phase == "Pending":
        return waiting("starting", f"pod {pod['metadata']['name']} gets its image and volumes", since=since)
    return None


def _why_container(state: Mapping[str, Any], *, since: str) -> Waiting | None:
    reason = state.get("reason", "")
    message = f"{reason}: {state.get('message', '')}".strip(": ")
    if reason in _NO_SUCH_IMAGE:
        return waiting("image", message, since=since, patience_s=0.0)
    if reason in _IMAGE_MAY_COME:
        return waiting("image", message, since=since)
    return waiting("config", message, since=since) if reason in _CONFIG else None


def _begun(pod: Mapping[str, Any]) -> datetime | None:
    states = [container.get("state", {}) for container in pod.get("status", {}).get("containerStatuses", ())]
    begun = [part["startedAt"] for state in states for part in state.values() if part.get("startedAt")]
    return max((_time(at) for at in begun), default=None)


def _rank(pod: Mapping[str, Any]) -> tuple[int, datetime]:
    """The telling pod first: a cause from outside, then the first to fail, whose end took the others with it."""
    at = failed_at(pod)
    assert at is not None
    is_outside = any(end.get("reason") == "OOMKilled" for end in _ends(pod)) or bool(_outside(pod))
    return (0 if is_outside else 1, at)


def _failure(pod: Mapping[str, Any]) -> Failure:
    name = pod["metadata"]["name"]
    end = next(iter(_ends(pod)), {})
    tail = str(end.get("message", ""))[-_TAIL_MAX_CHARACTERS:].strip()
    if end.get("reason") == "OOMKilled":
        message = f"pod {name} used more than its memory limit; raise it by CINEVENT_RUN_OVERLAY, or ask for less"
        return Failure(code="out_of_memory", message=message, log_tail=tail)
    if pod["status"].get("reason") == "DeadlineExceeded":
        return deadline_exceeded(f"pod {name} was active for as long as it may be")
    if why := _outside(pod):
        code = "node_lost" if why.startswith(_NODE_GONE) else "evicted"
        return Failure(code=code, message=f"pod {name} was taken away: {_brief(why)}", log_tail=tail)
    if end.get("reason") in _CANNOT_START:
        message = f"pod {name} cannot start its command: {_brief(tail)}; {_HINTS['config']}"
        return Failure(code="run_misconfigured", message=message, retryable=False)
    how = f"with {end['exitCode']}" if "exitCode" in end else "without an exit code"
    return Failure(code="engine_crashed", message=f"pod {name} ended {how}", log_tail=tail)


def _outside(pod: Mapping[str, Any]) -> str:
    """Why something outside took the pod away; empty if nothing did."""
    disrupted = _condition(pod, "DisruptionTarget")
    if disrupted.get("status") == "True":
        return f"{disrupted.get('reason', '')}: {disrupted.get('message', '')}"
    status = pod.get("status", {})
    if status.get("reason") in _TAKEN_AWAY:
        return f"{status['reason']}: {status.get('message', '')}"
    return ""


def _ends(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The states of the containers that ended badly."""
    for container in _containers(pod):
        end = container.get("state", {}).get("terminated", {})
        if end.get("exitCode", 0) != 0 or end.get("reason") == "OOMKilled":
            yield end


def _containers(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((c for c in pod.get("status", {}).get("conditions") or () if c["type"] == kind), {})


def _brief(text: str) -> str:
    return " ".join(text.split())[:_MESSAGE_MAX_CHARACTERS]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
