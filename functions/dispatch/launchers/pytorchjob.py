"""A run as Kubeflow's PyTorchJob v1 (training-operator 1.9): its operator makes the pods and sets PET_*. Pure.

What the operator does not do by itself, seen with 1.9.4: it never enforces runPolicy.activeDeadlineSeconds (the pods
have their own), it leaves the other pods running when one fails (cleanPodPolicy), and it restarts without end on the
restart policies OnFailure and ExitCode.
"""

from typing import Any

from functions.dispatch.launchers import pod
from functions.dispatch.launchers.kind import TTL_S, Kind


def manifest(order: pod.Order) -> dict[str, Any]:
    """The PyTorchJob: one master, and a worker for every further node."""
    replica = {"restartPolicy": "Never", "template": pod.template(order)}
    replicas = {"Master": {"replicas": 1, **replica}}
    if order.plan.num_nodes > 1:
        replicas["Worker"] = {"replicas": order.plan.num_nodes - 1, **replica}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": pod.metadata(order),
        "spec": {
            # With the default, auto, the operator counts one process per node.
            "nprocPerNode": str(order.plan.num_processes),
            "runPolicy": {
                # Ends the other nodes' pods and keeps the failed one, whose exit code says why.
                "cleanPodPolicy": "Running",
                # Attempts are dispatch's.
                "backoffLimit": 0,
                "ttlSecondsAfterFinished": TTL_S,
            },
            "pytorchReplicaSpecs": replicas,
        },
    }


PYTORCHJOB = Kind(
    name="pytorchjob",
    collection="/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs",
    manifest=manifest,
)
