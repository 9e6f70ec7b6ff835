"""What dispatch may ask of the Kubernetes API: the rules of its role, and what `cinevent doctor` asks about. Pure.

knative/base/rbac.yaml grants exactly these; tests/kube/test_permissions.py holds both to the calls that are made.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Permission:
    """One kind of objects of a namespace, and what may be done with it; the core group is empty."""

    group: str
    resource: str
    verbs: tuple[str, ...]


_OF_RUNS = ("create", "get", "list", "patch", "delete")
PYTORCHJOBS = Permission(group="kubeflow.org", resource="pytorchjobs", verbs=_OF_RUNS)
JOBS = Permission(group="batch", resource="jobs", verbs=_OF_RUNS)
SERVICES = Permission(group="", resource="services", verbs=("create",))
PODS = Permission(group="", resource="pods", verbs=("list",))
EVENTS = Permission(group="", resource="events", verbs=("list",))
WORKLOADS = Permission(group="kueue.x-k8s.io", resource="workloads", verbs=("list",))

BY_LAUNCHER = {
    "pytorchjob": (PYTORCHJOBS, PODS, EVENTS),
    "indexedjob": (JOBS, SERVICES, PODS, EVENTS),
}
"""Without a queue; WORKLOADS with one."""
