"""What the objects of a run say about it: its phase, why it waits, why it failed. Pure.

In: the run as the API server has it, its pods, warnings about it, Kueue's workload. Out: an Observation. The rows of
tests/golden/runs.json are what it says of the objects that clusters show; docs/operations.md explains them to people.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from functions.dispatch.launcher import Failure, Observation, Phase, Waiting
from functions.dispatch.launchers import pods as of_pods
from functions.dispatch.launchers.pods import seconds, waiting

_SUCCEEDED = frozenset({"Succeeded", "Complete"})
_FAILED = frozenset({"Failed"})
_TELLING = frozenset({"PodFailurePolicy", "BackoffLimitExceeded"})
# An operator, or Kubernetes itself, needs a moment to make pods, and another to see that one failed.
_REACTION_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """The objects of one run, as JSON."""

    run: Mapping[str, Any]
    num_nodes: int
    pods: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, Any]] = ()
    """Warnings about the run."""
    workload: Mapping[str, Any] = field(default_factory=dict)
    """Kueue's, of this run; empty without one."""


def classify(evidence: Evidence, *, now: datetime) -> Observation:
    """Where the run is at `now`."""
    run = evidence.run
    if true_condition(run, _SUCCEEDED):
        return Observation(phase=Phase.SUCCEEDED)
    if ended := true_condition(run, _FAILED):
        return _failed(of_pods.failure(evidence.pods) or _by_condition(ended, evidence))
    return _suspended(evidence) if is_suspended(run) else _going_on(evidence, now)


def true_condition(item: Mapping[str, Any], types: frozenset[str]) -> Mapping[str, Any]:
    """The condition of one of these types that is true; empty if none is. The last in the list need not be it."""
    conditions = item.get("status", {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] in types and c["status"] == "True"), {})


def is_over(run: Mapping[str, Any]) -> bool:
    """Whether the run says itself that it has ended."""
    return bool(true_condition(run, _SUCCEEDED | _FAILED))


def is_suspended(run: Mapping[str, Any]) -> bool:
    """Whether the run has no pods because somebody, such as Kueue, holds it back."""
    spec = run["spec"]
    return bool(spec.get("suspend") or spec.get("runPolicy", {}).get("suspend"))


def is_settled(run: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], num_nodes: int) -> bool:
    """Whether pods that are alive say all there is to know: no warning could add to it."""
    return is_suspended(run) or len(pods) >= num_nodes


def _going_on(evidence: Evidence, now: datetime) -> Observation:
    if lost := _lost(evidence, now):
        return _failed(lost)
    why = _waiting(evidence, now)
    if why is None:
        return Observation(phase=Phase.RUNNING, launched_at=of_pods.launched_at(evidence.pods))
    if why.patience_s == 0:
        return _failed(why.failure)
    return Observation(phase=Phase.WAITING, waiting=why)


def _failed(failure: Failure) -> Observation:
    return Observation(phase=Phase.FAILED, failure=failure)


def _by_condition(condition: Mapping[str, Any], evidence: Evidence) -> Failure:
    """The run's own words; a PyTorchJob has none for a pod that is gone, and a Job names its policy."""
    reason, message = condition.get("reason", ""), condition.get("message") or "it gives no reason"
    if reason == "DeadlineExceeded":
        return of_pods.deadline_exceeded(message)
    if reason not in _TELLING and len(evidence.pods) < evidence.num_nodes:
        return of_pods.gone(evidence.num_nodes - len(evidence.pods), evidence.num_nodes)
    return Failure(code="engine_crashed", message=f"the run failed: {message}")


def _suspended(evidence: Evidence) -> Observation:
    if evidence.workload.get("spec", {}).get("active") is False:
        # The run itself only says that it is suspended, for ever.
        evicted = true_condition(evidence.workload, frozenset({"Evicted"}))
        why = evicted.get("message") or evicted.get("reason") or "somebody did"
        message = f"Kueue's workload of the run was deactivated: {why}"
        return _failed(Failure(code="queue_deactivated", message=message, retryable=False))
    conditions = evidence.workload.get("status", {}).get("conditions") or ()
    said = next((c.get("message") for c in conditions if c["type"] == "QuotaReserved"), "")
    since = true_condition(evidence.run, frozenset({"Suspended"})).get("lastTransitionTime")
    why = waiting(
        "queued",
        said or "no quota is free for it yet",
        since=since or evidence.run["metadata"]["creationTimestamp"],
    )
    return Observation(phase=Phase.WAITING, waiting=why)


def _lost(evidence: Evidence, now: datetime) -> Failure | None:
    """What the pods say and the run itself does not, because whoever should say it is slow, or away."""
    reacted = now - timedelta(seconds=_REACTION_S)
    old = [pod for pod in evidence.pods if (of_pods.failed_at(pod) or now) < reacted]
    return of_pods.node_lost(evidence.pods, now=now) or (of_pods.failure(old))


def _waiting(evidence: Evidence, now: datetime) -> Waiting | None:
    missing = evidence.num_nodes - len(evidence.pods)
    found = of_pods.why_waiting(evidence.pods)
    if found or missing <= 0:
        return found
    created = evidence.run["metadata"]["creationTimestamp"]
    warnings = [event for event in evidence.events if event["reason"] in ("FailedCreatePod", "FailedCreate")]
    if warnings:
        return waiting("quota", str(warnings[-1].get("message", "")), since=created)
    if seconds(created, now) < _REACTION_S:
        return waiting("starting", "its pods are being made", since=created)
    return waiting("no_pods", f"{missing} of its {evidence.num_nodes} pods were never made", since=created)
