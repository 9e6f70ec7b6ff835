"""The objects that clusters show of a run in each state, written after what was seen of training-operator 1.9.4, Kueue
0.13 and Kubernetes 1.36: what tests/golden/runs.json is made from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from functions.dispatch.launchers.classify import Evidence
from tests.make import AT, JOB

Json = dict[str, Any]
RUN = f"{JOB}-a1"
NODES = 2


def at(after_s: float) -> str:
    """A time so long after the run was made, as the API server writes it."""
    return f"{AT + timedelta(seconds=after_s):%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """The objects of a run, so many seconds after it was made."""

    after_s: float
    evidence: Evidence

    @property
    def now(self) -> datetime:
        return AT + timedelta(seconds=self.after_s)


def a_condition(kind: str, *, status: str = "True", after_s: float = 0, **more: str) -> Json:
    return {"type": kind, "status": status, "lastTransitionTime": at(after_s), **more}


def a_run(*conditions: Json, suspend: bool = False) -> Json:
    """A PyTorchJob with these conditions; none: the operator has not seen it."""
    run = {
        "metadata": {"name": RUN, "uid": "u1", "creationTimestamp": at(0)},
        "spec": {"runPolicy": {"suspend": suspend}},
    }
    return {**run, "status": {"conditions": list(conditions)} if conditions else {}}


def an_indexed_job(*conditions: Json) -> Json:
    """A Job with these conditions."""
    return {**a_run(*conditions), "spec": {"suspend": False}}


def a_pod(name: str, phase: str, *containers: Json, conditions: tuple[Json, ...] = (), **status: Any) -> Json:
    """A pod of the run; `metadata` among `status` adds to its metadata."""
    metadata = {"name": f"{RUN}-{name}", "creationTimestamp": at(1), **status.pop("metadata", {})}
    scheduled = (
        () if conditions and conditions[0]["type"] == "PodScheduled" else (a_condition("PodScheduled", after_s=2),)
    )
    return {
        "metadata": metadata,
        "spec": {"nodeName": "gpu-7"},
        "status": {
            "phase": phase,
            "conditions": [*scheduled, *conditions],
            "containerStatuses": [{"name": "pytorch", "state": state} for state in containers],
            **status,
        },
    }


def both(phase: str, *containers: Json, **more: Any) -> list[Json]:
    """The master's pod and the worker's, alike."""
    return [a_pod(name, phase, *containers, **more) for name in ("master-0", "worker-0")]


def waits(reason: str, message: str = "") -> Json:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def runs(after_s: float) -> Json:
    return {"running": {"startedAt": at(after_s)}}


def ended(code: int, after_s: float, *, reason: str = "Error", message: str = "") -> Json:
    times = {"startedAt": at(5), "finishedAt": at(after_s)}
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, **times}}


def a_warning(reason: str, message: str) -> Json:
    return {"reason": reason, "message": message, "type": "Warning", "involvedObject": {"uid": "u1"}}


CREATED = a_condition("Created", reason="PyTorchJobCreated", message=f"PyTorchJob {RUN} is created.")
RUNNING = a_condition("Running", after_s=6, reason="PyTorchJobRunning")
FAILED = a_condition(
    "Failed", after_s=90, reason="PyTorchJobFailed", message=f"{RUN} is failed: 1 Worker replica(s) failed."
)
SUSPENDED = a_condition("Suspended", reason="PyTorchJobSuspended", message=f"PyTorchJob {RUN} is suspended.")
NO_ROOM = a_condition(
    "PodScheduled",
    status="False",
    after_s=1,
    reason="Unschedulable",
    message="0/4 nodes are available: 4 Insufficient nvidia.com/gpu. no new claims to deallocate.",
)
MASTER = a_pod("master-0", "Running", runs(5))
PULL = waits("ImagePullBackOff", 'Back-off pulling image "registry.example/engine:none"')


def _case(after_s: float, run: Json, *pods: Json, **more: Any) -> Case:
    return Case(after_s=after_s, evidence=Evidence(run=run, num_nodes=NODES, pods=pods, **more))


def _failed(*pods: Json, run: Mapping[str, Any] | None = None) -> Case:
    return _case(100, dict(run or a_run(CREATED, {**RUNNING, "status": "False"}, FAILED)), *pods)


CASES: dict[str, Case] = {
    "made just now": _case(3, a_run()),
    "conditions empty, no operator": _case(120, a_run()),
    "conditions empty, quota": _case(
        120,
        a_run(),
        MASTER,
        events=(a_warning("FailedCreatePod", f'pods "{RUN}-worker-0" is forbidden: exceeded quota: gpus'),),
    ),
    "a Job over quota": _case(
        30, an_indexed_job(), events=(a_warning("FailedCreate", "pods is forbidden: exceeded quota: gpus"),)
    ),
    "another warning, pods missing": _case(120, a_run(CREATED), events=(a_warning("InvalidSpec", "something else"),)),
    "unschedulable": _case(600, a_run(CREATED), *both("Pending", conditions=(NO_ROOM,))),
    "half placed": _case(60, a_run(CREATED, RUNNING), MASTER, a_pod("worker-0", "Pending", conditions=(NO_ROOM,))),
    "containers are being made": _case(20, a_run(CREATED), *both("Pending", waits("ContainerCreating"))),
    "a worker waits for the master's name": _case(
        20,
        a_run(CREATED, RUNNING),
        MASTER,
        a_pod("worker-0", "Pending", waits("PodInitializing"), initContainerStatuses=[{"state": runs(4)}]),
    ),
    "image missing": _case(60, a_run(CREATED), a_pod("master-0", "Pending", PULL), a_pod("worker-0", "Pending", PULL)),
    "init image missing": _case(
        60,
        a_run(CREATED, RUNNING),
        MASTER,
        a_pod("worker-0", "Pending", waits("PodInitializing"), initContainerStatuses=[{"state": PULL}]),
    ),
    "image with no such name": _case(
        60,
        a_run(CREATED),
        *(
            a_pod(name, "Pending", waits("InvalidImageName", "couldn't parse image name"))
            for name in ("master-0", "worker-0")
        ),
    ),
    "Secret missing": _case(
        60,
        a_run(CREATED),
        a_pod("master-0", "Pending", waits("CreateContainerConfigError", 'secret "nats" not found')),
        a_pod("worker-0", "Pending", conditions=(NO_ROOM,)),
    ),
    "waits in Kueue": _case(
        60,
        a_run(CREATED, SUSPENDED, suspend=True),
        workload={
            "spec": {"active": True},
            "status": {
                "conditions": [
                    a_condition(
                        "QuotaReserved",
                        status="False",
                        reason="Pending",
                        message="couldn't assign flavors to pod set master: insufficient unused quota",
                    )
                ]
            },
        },
    ),
    "Kueue has not seen it": _case(2, a_run(suspend=True)),
    "deactivated by Kueue": _case(
        300,
        a_run(CREATED, SUSPENDED, suspend=True),
        workload={
            "spec": {"active": False},
            "status": {
                "conditions": [
                    a_condition(
                        "Evicted",
                        reason="DeactivatedDueToRequeuingLimitExceeded",
                        message="The workload is deactivated due to exceeding the maximum number of re-queuing retries",
                    )
                ]
            },
        },
    ),
    "deactivated by hand": _case(
        300, a_run(CREATED, SUSPENDED, suspend=True), workload={"spec": {"active": False}, "status": {}}
    ),
    "running": _case(60, a_run(CREATED, RUNNING), MASTER, a_pod("worker-0", "Running", runs(9))),
    "a worker ended first": _case(
        60, a_run(CREATED, RUNNING), MASTER, a_pod("worker-0", "Succeeded", ended(0, 55, reason="Completed"))
    ),
    "succeeded": _case(
        100, a_run(CREATED, {**RUNNING, "status": "False"}, a_condition("Succeeded", after_s=90), SUSPENDED)
    ),
    "a Job complete": _case(100, an_indexed_job(a_condition("SuccessCriteriaMet"), a_condition("Complete"))),
    "a worker failed": _failed(a_pod("worker-0", "Failed", ended(1, 89, message="ValueError: no such thing\n"))),
    "the first to fail is the cause": _failed(
        a_pod("master-0", "Failed", ended(1, 89, message="connection reset by peer")),
        a_pod("worker-0", "Failed", ended(134, 80, message="CUDA error: an illegal memory access")),
    ),
    "out of memory": _failed(
        a_pod("master-0", "Failed", ended(1, 80, message="connection reset by peer")),
        a_pod("worker-0", "Failed", ended(137, 89, reason="OOMKilled", message="step 3")),
    ),
    "evicted by the kubelet": _failed(
        a_pod("worker-0", "Failed", reason="Evicted", message="The node was low on resource: memory.")
    ),
    "preempted": _failed(
        a_pod(
            "worker-0",
            "Failed",
            ended(143, 80),
            conditions=(
                a_condition(
                    "DisruptionTarget", reason="PreemptionByScheduler", message="preempting to accommodate a pod"
                ),
            ),
        )
    ),
    "the pod was deleted": _failed(),
    "node lost, pods marked": _case(
        150,
        a_run(CREATED, RUNNING),
        MASTER,
        a_pod("worker-0", "Running", runs(9), metadata={"deletionTimestamp": at(100)}),
    ),
    "a pod that ends in time": _case(
        110,
        a_run(CREATED, RUNNING),
        MASTER,
        a_pod("worker-0", "Running", runs(9), metadata={"deletionTimestamp": at(100)}),
    ),
    "node lost, failed": _failed(
        a_pod(
            "worker-0",
            "Failed",
            ended(137, 80),
            conditions=(
                a_condition(
                    "DisruptionTarget",
                    reason="DeletionByTaintManager",
                    message="Taint manager: deleting due to NoExecute taint",
                ),
            ),
        )
    ),
    "deadline of the pod": _failed(
        a_pod("master-0", "Failed", ended(137, 89), reason="DeadlineExceeded", message="Pod was active on the node"),
    ),
    "deadline of a Job": _failed(
        a_pod("0-x7k2p", "Running", runs(5)),
        a_pod("1-q9d4m", "Running", runs(5)),
        run=an_indexed_job(
            a_condition("Failed", reason="DeadlineExceeded", message="Job was active longer than specified deadline")
        ),
    ),
    "the command is missing": _failed(
        a_pod(
            "master-0",
            "Failed",
            ended(128, 6, reason="StartError", message='exec: "torchrun": executable file not found in $PATH'),
        ),
        a_pod("worker-0", "Running", runs(5)),
    ),
    "a pod failed and the operator is away": _case(
        200, a_run(CREATED, RUNNING), MASTER, a_pod("worker-0", "Failed", ended(1, 90, message="ValueError"))
    ),
    "a pod failed just now": _case(
        100, a_run(CREATED, RUNNING), MASTER, a_pod("worker-0", "Failed", ended(1, 90, message="ValueError"))
    ),
    "a Job failed by its policy": _failed(
        run=an_indexed_job(
            a_condition(
                "Failed",
                reason="PodFailurePolicy",
                message=f"Container pytorch for pod {RUN}-0-x7k2p failed with exit code 3 matching FailJob",
            )
        )
    ),
}
