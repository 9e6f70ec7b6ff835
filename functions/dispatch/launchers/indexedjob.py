"""A run as a batch/v1 Indexed Job and, with more than one node, a headless Service: needs no operator. Pure.

Kubernetes itself enforces its deadline and says in its conditions why it failed; PET_* are set here.
"""

from collections.abc import Mapping
from typing import Any

from functions.dispatch.launchers import overlay, pod
from functions.dispatch.launchers.kind import TTL_S, Kind

_PORT = 29500  # torchrun's own default


def manifest(order: pod.Order) -> dict[str, Any]:
    """The Job: one pod per node."""
    nodes = order.plan.num_nodes
    template = overlay.merge(
        pod.template(order, environ=_environ(order)),
        # Pods of an Indexed Job have their index in their host name; the subdomain makes it a name in DNS.
        {"spec": {"restartPolicy": "Never", **({"subdomain": order.name} if nodes > 1 else {})}},
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": pod.metadata(order),
        "spec": {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            # Attempts are dispatch's.
            "backoffLimit": 0,
            "activeDeadlineSeconds": order.deadline_s,
            "ttlSecondsAfterFinished": TTL_S,
            # The only one that a podFailurePolicy allows.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    # In this order: a pod that was evicted ends with an exit code too.
                    {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": pod.CONTAINER, "operator": "NotIn", "values": [0]},
                    },
                ]
            },
            "template": template,
        },
    }


def service(order: pod.Order, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The names of the pods in DNS; a run on one node needs none."""
    if order.plan.num_nodes == 1:
        return None
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": order.name,
        "uid": run["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": order.name, "labels": pod.labels(order), "ownerReferences": [owner]},
        "spec": {
            "clusterIP": "None",
            # The master is looked for before it is ready.
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": order.name},
            "ports": [{"name": "rendezvous", "port": _PORT}],
        },
    }


def _environ(order: pod.Order) -> dict[str, Any]:
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    is_alone = order.plan.num_nodes == 1
    return {
        "PET_NNODES": str(order.plan.num_nodes),
        "PET_NPROC_PER_NODE": str(order.plan.num_processes),
        "PET_MASTER_ADDR": "127.0.0.1" if is_alone else f"{order.name}-0.{order.name}",
        "PET_MASTER_PORT": str(_PORT),
        "PET_NODE_RANK": {"valueFrom": {"fieldRef": {"fieldPath": index}}},
    }


INDEXEDJOB = Kind(
    name="indexedjob",
    collection="/apis/batch/v1/namespaces/{namespace}/jobs",
    manifest=manifest,
    companion=service,
)
