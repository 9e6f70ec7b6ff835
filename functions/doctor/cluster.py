"""What a cluster must have: other projects' kinds, dispatch's permissions, ready functions and sources, a queue.

Read only, but for access reviews, which store nothing. Inside a pod it asks about the pod's own account, and sees no
more than that may; elsewhere about dispatch's account, in the name of whoever KUBECONFIG names.
"""

from collections.abc import Callable, Iterator
from typing import Any

from engine.contract.errors import CineventError
from engine.contract.settings import Settings
from engine.contract.streams import SOURCES
from functions.dispatch.launchers.kube import Kube
from functions.dispatch.launchers.permissions import BY_LAUNCHER, WORKLOADS, Permission
from functions.doctor.finding import Finding, Wrong, attempt, not_checked, ok, wrong

_ACCOUNT = "cinevent-dispatch"
_NEEDED = {
    "serving.knative.dev/v1": "Knative Serving",
    "sources.knative.dev/v1": "Knative Eventing",
    "keda.sh/v1alpha1": "KEDA",
}
_BY_LAUNCHER = {
    "pytorchjob": {"kubeflow.org/v1": "Kubeflow's training-operator"},
    "indexedjob": {"batch/v1": "Kubernetes"},
}
_KUEUE = "/apis/kueue.x-k8s.io/v1beta1"
_FUNCTIONS = ("submit", "dispatch", "notify")
_APPLY = "kubectl apply -k knative/overlays/YOURS"


def examine(settings: Settings, *, kubeconfig: str, in_pod: bool) -> Iterator[Finding]:
    """Everything that the cluster shows."""
    if settings.launcher == "local":
        yield not_checked("cluster", "no cluster: CINEVENT_LAUNCHER is local")
        return
    try:
        kube = Kube.open(namespace=settings.namespace, kubeconfig=kubeconfig)
        groups = kube.get("/apis")["groups"]
    except CineventError as error:
        yield wrong("cluster", str(error), fix="set KUBECONFIG; kubectl cluster-info shows whether it is right")
        return
    try:
        yield from _kinds(groups, settings)
        yield _permissions(kube, settings, in_pod=in_pod)
        yield _image(settings)
        if in_pod:
            yield not_checked("ready", "a pod's account does not see functions and sources; ask with a KUBECONFIG")
            return
        yield from _ready(kube)
        yield _queue(kube, settings)
    finally:
        kube.close()


def _kinds(groups: list[Any], settings: Settings) -> Iterator[Finding]:
    served = {version["groupVersion"] for group in groups for version in group["versions"]}
    needed = {**_NEEDED, **_BY_LAUNCHER[settings.launcher], **({_KUEUE[6:]: "Kueue"} if settings.kueue_queue else {})}
    for name, project in needed.items():
        if name in served:
            yield ok("kinds", f"{name} ({project})")
        else:
            others = sorted(each for each in served if each.partition("/")[0] == name.partition("/")[0])
            text = f"{name} is not served" + (f"; served: {', '.join(others)}" if others else "")
            yield wrong("kinds", text, fix=f"install {project}: docs/operations.md, Install")


def _permissions(kube: Kube, settings: Settings, *, in_pod: bool) -> Finding:
    wanted = (*BY_LAUNCHER[settings.launcher], *((WORKLOADS,) if settings.kueue_queue else ()))
    who = "this pod's account" if in_pod else f"the account {_ACCOUNT}"

    def look() -> str:
        missing = [
            f"{verb} {permission.resource}"
            for permission in wanted
            for verb in permission.verbs
            if not _is_allowed(kube, permission, verb, in_pod=in_pod)
        ]
        if missing:
            raise Wrong(f"{who} in {kube.namespace} may not {', '.join(missing)}")
        return f"{who} may do what dispatch does in {kube.namespace}"

    return attempt("permissions", look, fix=f"{_APPLY} (knative/base/rbac.yaml)")


def _is_allowed(kube: Kube, permission: Permission, verb: str, *, in_pod: bool) -> bool:
    attributes = {"namespace": kube.namespace, "group": permission.group, "resource": permission.resource, "verb": verb}
    spec: dict[str, Any] = {"resourceAttributes": attributes}
    kind = "SelfSubjectAccessReview"
    if not in_pod:
        kind, spec["user"] = "SubjectAccessReview", f"system:serviceaccount:{kube.namespace}:{_ACCOUNT}"
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {}, "spec": spec}
    return bool(kube.create(f"/apis/authorization.k8s.io/v1/{kind.lower()}s", body)["status"]["allowed"])


def _ready(kube: Kube) -> Iterator[Finding]:
    """Functions and sources, by the condition that their own controllers set."""
    serving, sources, keda = (f"/apis/{group}/namespaces/{kube.namespace}" for group in _NEEDED)
    names = [f"source-{name}" for name in SOURCES]
    wanted = {
        **{f"ksvc {name}": f"{serving}/services/{name}" for name in _FUNCTIONS},
        **{f"sinkbinding {name}": f"{sources}/sinkbindings/{name}" for name in names},
        **{f"scaledobject {name}": f"{keda}/scaledobjects/{name}" for name in names},
    }
    for name, path in wanted.items():
        fix = f"kubectl -n {kube.namespace} describe {name}; or {_APPLY}"
        yield attempt("ready", _condition(kube, path, name, "Ready"), fix=fix)


def _queue(kube: Kube, settings: Settings) -> Finding:
    name = f"localqueue {settings.kueue_queue}"
    if not settings.kueue_queue:
        return not_checked("queue", "CINEVENT_KUEUE_QUEUE is not set: dispatch itself bounds the runs")
    path = f"{_KUEUE}/namespaces/{kube.namespace}/localqueues/{settings.kueue_queue}"
    fix = f"kubectl -n {kube.namespace} describe {name}; or {_APPLY}"
    return attempt("queue", _condition(kube, path, name, "Active"), fix=fix)


def _condition(kube: Kube, path: str, name: str, kind: str) -> Callable[[], str]:
    def look() -> str:
        conditions = kube.get(path).get("status", {}).get("conditions") or []
        found = next((condition for condition in conditions if condition["type"] == kind), None)
        if not found or found["status"] != "True":
            why = found.get("message") or found.get("reason") if found else "nothing is said of it yet"
            raise Wrong(f"{name} is not {kind}: {why}")
        return f"{name} is {kind}"

    return look


def _image(settings: Settings) -> Finding:
    image = settings.engine_image
    tag = image.rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest") and "@" not in image:
        text = f"{image} has no version: two runs, or two nodes of one run, may get different programs"
        return wrong(
            "image", text, fix="set CINEVENT_ENGINE_IMAGE to an image with a tag other than latest, or a digest"
        )
    return ok("image", f"{image}; whether nodes can pull it shows in a run's stage")
