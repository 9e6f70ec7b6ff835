"""A stand-in for training-operator and Kubernetes' Job controller: makes the pods of runs and says how they fare.

It speaks to the API server as they do, over HTTP, so that it works with the real one too. Nothing is executed:
tests/kubelet.py does that.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from engine.contract.errors import NotFound
from functions.dispatch.launchers import pod
from functions.dispatch.launchers.kind import Kind
from functions.dispatch.launchers.kube import Exists, Json, Kube

# A Job must have been about to end before it ends.
_BEFORE = {"Complete": ("SuccessCriteriaMet",), "Failed": ("FailureTarget",)}


class Operator:
    """The controller of one kind of runs in a namespace."""

    def __init__(self, kube: Kube, kind: Kind) -> None:
        self.kube = kube
        self.runs = kind.collection.format(namespace=kube.namespace)
        self.pods = f"/api/v1/namespaces/{kube.namespace}/pods"

    def make_pods(self, run: str) -> list[str]:
        """The pods of a run, as pending as they are after their creation; returns their names."""
        item = self.kube.get(f"{self.runs}/{run}")
        names = []
        for name, template in pods_of(item):
            owner = {
                "apiVersion": item["apiVersion"],
                "kind": item["kind"],
                "name": run,
                "uid": item["metadata"]["uid"],
                "controller": True,
            }
            metadata = {**template["metadata"], "name": name, "ownerReferences": [owner]}
            spec = {**template["spec"], "restartPolicy": "Never"}
            body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            with suppress(Exists):
                self.kube.create(self.pods, body)
            names.append(name)
        return names

    def say(self, run: str, kind: str, *, status: str = "True", **more: str) -> None:
        """Write one condition of a run, instead of those it has, and what the API server demands beside it."""
        before = [_condition(name) for name in _BEFORE.get(kind, ()) if self.runs.endswith("/jobs")]
        # The API server takes no other time of a Job that began.
        began = (self.kube.get(f"{self.runs}/{run}").get("status") or {}).get("startTime") or now()
        times = {"startTime": began, **({"completionTime": now()} if kind == "Complete" else {})}
        conditions = [*before, _condition(kind, status=status, **more)]
        self.patch_status(f"{self.runs}/{run}", {**times, "conditions": conditions})

    def pod_is(self, name: str, phase: str, state: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Write the status of a pod; `state` is that of its container."""
        container = {"name": pod.CONTAINER, "image": "", "imageID": "", "ready": False, "restartCount": 0}
        containers = [{**container, "state": dict(state)}] if state else []
        self.patch_status(f"{self.pods}/{name}", {"phase": phase, "containerStatuses": containers, **more})

    def pod_runs(self, name: str) -> None:
        """A pod is up."""
        self.pod_is(name, "Running", {"running": {"startedAt": now()}})

    def pod_failed(self, name: str, code: int, *, reason: str = "Error", message: str = "") -> None:
        """A pod ended badly."""
        end = {"exitCode": code, "reason": reason, "message": message, "startedAt": now(), "finishedAt": now()}
        self.pod_is(name, "Failed", {"terminated": end})

    def unschedulable(self, name: str, message: str) -> None:
        """The scheduler found no node for a pod."""
        condition = _condition("PodScheduled", status="False", reason="Unschedulable", message=message)
        self.pod_is(name, "Pending", conditions=[condition])

    def start(self, run: str) -> list[str]:
        """All pods of a run are up; returns their names."""
        names = self.make_pods(run)
        for name in names:
            self.pod_runs(name)
        self.say(run, "Running")
        return names

    def patch_status(self, path: str, status: Mapping[str, Any]) -> None:
        """Replace parts of the status of an object that still is there."""
        with suppress(NotFound):
            self.kube.patch(f"{path}/status", {"status": status})


def pods_of(item: Json) -> list[tuple[str, Json]]:
    """Name and template of every pod of a run, as its controller makes them."""
    run, spec = item["metadata"]["name"], item["spec"]
    if "template" in spec:
        return [(f"{run}-{index}-abcde", spec["template"]) for index in range(spec["completions"])]
    return [
        (f"{run}-{role.lower()}-{index}", replica["template"])
        for role, replica in spec["pytorchReplicaSpecs"].items()
        for index in range(replica["replicas"])
    ]


def now() -> str:
    """As the API server writes it."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _condition(kind: str, *, status: str = "True", **more: str) -> Json:
    return {"type": kind, "status": status, "lastTransitionTime": now(), **more}
