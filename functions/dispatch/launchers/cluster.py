"""Runs in a Kubernetes cluster, of any kind: the calls. What is made is pytorchjob.py's and indexedjob.py's, what
objects mean is classify.py's.

Lists are shared by all looks of a few seconds. What is not in a list is asked for by name before anybody acts on it: a
list may be older than the run.
"""

import json
import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from engine.contract.errors import Conflict, NotFound, Unavailable
from engine.contract.job import Job, is_id
from engine.contract.plan import Plan
from engine.contract.settings import Settings
from functions.dispatch.launcher import ActiveRun, Observation, Phase
from functions.dispatch.launchers import pod
from functions.dispatch.launchers.classify import Evidence, classify, is_over, is_settled, is_suspended
from functions.dispatch.launchers.indexedjob import INDEXEDJOB
from functions.dispatch.launchers.kind import Kind
from functions.dispatch.launchers.kube import Exists, Json, Kube
from functions.dispatch.launchers.pytorchjob import PYTORCHJOB
from functions.dispatch.launchers.shared import Shared

_LOG = logging.getLogger(__name__)
KINDS = {kind.name: kind for kind in (PYTORCHJOB, INDEXEDJOB)}
# A look at a run that changed this long ago is early enough, and a place that became free is taken within seconds. A
# hint says that something changed just now: its run is looked at without lists.
_LOOK_AGE_S = 5.0
_FRESH_S = 2.0
_RETRY_AFTER_S = 5.0
_ALIVE = "status.phase!=Succeeded,status.phase!=Failed"
_PODS = "/api/v1/namespaces/{namespace}/pods"
_SERVICES = "/api/v1/namespaces/{namespace}/services"
_EVENTS = "/api/v1/namespaces/{namespace}/events"
_WORKLOADS = "/apis/kueue.x-k8s.io/v1beta1/namespaces/{namespace}/workloads"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """A run as it was seen."""

    item: Json
    active: ActiveRun
    num_nodes: int
    is_over: bool


class ClusterLauncher:
    """Runs of one kind in one namespace."""

    def __init__(self, kube: Kube, kind: Kind, *, settings: Settings) -> None:
        self.name = kind.name
        self._kube = kube
        self._kind = kind
        self._image = settings.engine_image
        self._queue = settings.kueue_queue
        self._overlay = pod.read_overlay(settings.run_overlay)
        self._runs = Shared(self._list_runs)
        self._pods = Shared(self._list_pods)
        self._events = Shared(self._list_events)
        self._workloads = Shared(self._list_workloads)
        self._lock = threading.Lock()
        self._made: dict[str, tuple[float, _Run]] = {}

    def launch(self, job: Job, *, attempt: int, plan: Plan, environ: Mapping[str, str]) -> None:
        """Start the run of this attempt; one that exists already is success."""
        ends_at = job.created_at + timedelta(seconds=job.request.deadline_s)
        order = pod.Order(
            job=job,
            attempt=attempt,
            plan=plan,
            deadline_s=max(1, math.ceil((ends_at - datetime.now(UTC)).total_seconds())),
            environ=pod.engine_environ(environ),
            overlay=self._overlay,
            image=self._image,
            queue=self._queue,
        )
        try:
            item = self._kube.create(self._path(self._kind.collection), self._kind.manifest(order))
        except Exists:
            item = self._adopted(order)
        companion = self._kind.companion(order, item)
        if companion is not None:
            with suppress(Exists):
                self._kube.create(self._path(_SERVICES), companion)
        with self._lock:
            self._made[order.name] = (time.monotonic(), _run(item))

    def observe(self, run: str, *, is_fresh: bool = False) -> Observation:
        """Where the run is."""
        found = (None if is_fresh else self._seen(_LOOK_AGE_S).get(run)) or self._asked(run)
        if found is None:
            return Observation(phase=Phase.ABSENT)
        return classify(self._evidence(found, is_fresh=is_fresh), now=datetime.now(UTC))

    def cancel(self, run: str) -> None:
        """Delete a run that is not over, with its pods; one that is over stays as evidence, but is not active."""
        path = f"{self._path(self._kind.collection)}/{run}"
        with suppress(NotFound):
            try:
                item = self._kube.get(path)
                self._release(path, item)
            except Conflict as error:
                message = f"{run} was replaced meanwhile: {error}"
                raise Unavailable(message, retry_after_s=_RETRY_AFTER_S) from error
        with self._lock:
            self._made.pop(run, None)

    def active(self, *, is_fresh: bool = False) -> list[ActiveRun]:
        """All runs that are RUNNING or WAITING; this process's own launches are always among them."""
        seen = self._seen(_FRESH_S if is_fresh else _LOOK_AGE_S)
        return [run.active for run in seen.values() if not run.is_over]

    def tenant_of(self, run: str) -> str:
        """Whose this run is, by its own label."""
        found = self._seen(_LOOK_AGE_S).get(run) or self._asked(run)
        return found.active.tenant if found else ""

    def _release(self, path: str, item: Json) -> None:
        uid = item["metadata"]["uid"]
        if not _is_ours(item) or item["metadata"].get("deletionTimestamp"):
            return
        if not is_over(item):
            self._kube.delete(path, uid=uid)
        elif pod.ACTIVE.items() <= item["metadata"]["labels"].items():
            self._kube.patch(path, {"metadata": {"uid": uid, "labels": dict.fromkeys(pod.ACTIVE)}})

    def _adopted(self, order: pod.Order) -> Json:
        """The run that has this name already, if it is the same one. Raises Unavailable."""
        try:
            item = self._kube.get(f"{self._path(self._kind.collection)}/{order.name}")
        except NotFound:
            raise Unavailable(f"{order.name} was just deleted", retry_after_s=_RETRY_AFTER_S) from None
        if item["metadata"].get("deletionTimestamp"):
            raise Unavailable(f"{order.name} is being deleted", retry_after_s=_RETRY_AFTER_S)
        if not pod.labels(order).items() <= item["metadata"].get("labels", {}).items():
            message = f"{order.name} exists in {self._kube.namespace} and is not this job's; delete it"
            raise Unavailable(message, retry_after_s=_RETRY_AFTER_S)
        return item

    def _seen(self, max_age_s: float) -> dict[str, _Run]:
        asked_at, listed = self._runs.get(max_age_s=max_age_s)
        with self._lock:
            self._made = {name: made for name, made in self._made.items() if made[0] >= asked_at}
            return {**listed, **{name: run for name, (_, run) in self._made.items()}}

    def _asked(self, run: str) -> _Run | None:
        try:
            item = self._kube.get(f"{self._path(self._kind.collection)}/{run}")
        except NotFound:
            return None
        return _run(item) if _is_ours(item) else None

    def _evidence(self, run: _Run, *, is_fresh: bool) -> Evidence:
        uid, max_age_s = run.item["metadata"]["uid"], _FRESH_S if is_fresh else _LOOK_AGE_S
        pods = [] if is_suspended(run.item) else self._pods_of(run, is_fresh=is_fresh)
        events: list[Json] = []
        workload: Json = {}
        if is_suspended(run.item) and self._queue:
            workload = self._workloads.get(max_age_s=max_age_s)[1].get(uid, {})
        elif not run.is_over and not is_settled(run.item, pods, run.num_nodes):
            events = self._events.get(max_age_s=max_age_s)[1].get(uid, [])
        return Evidence(run=run.item, num_nodes=run.num_nodes, pods=pods, events=events, workload=workload)

    def _pods_of(self, run: _Run, *, is_fresh: bool) -> list[Json]:
        """Those that are alive, from the list; all of them if some are not."""
        if not (run.is_over or is_fresh):
            alive = self._pods.get(max_age_s=_LOOK_AGE_S)[1].get(run.active.name, [])
            if len(alive) >= run.num_nodes or not run.item.get("status", {}).get("conditions"):
                return alive
        names = ("job", "attempt")
        labels = run.item["metadata"]["labels"]
        own = {f"{pod.LABEL}{name}": labels[f"{pod.LABEL}{name}"] for name in names}
        return self._kube.list_all(self._path(_PODS), labels={**pod.MANAGED_BY, **own}, keep=_trimmed_pod)

    def _list_runs(self) -> dict[str, _Run]:
        runs = self._kube.list_all(
            self._path(self._kind.collection),
            labels={**pod.MANAGED_BY, **pod.ACTIVE},
            keep=lambda item: _run(item) if _is_ours(item) else None,
        )
        return {run.active.name: run for run in runs if run}

    def _list_pods(self) -> dict[str, list[Json]]:
        by_run: dict[str, list[Json]] = defaultdict(list)
        for item in self._kube.list_all(self._path(_PODS), labels=pod.MANAGED_BY, fields=_ALIVE, keep=_trimmed_pod):
            by_run[_run_of_pod(item)].append(item)
        return by_run

    def _list_events(self) -> dict[str, list[Json]]:
        by_uid: dict[str, list[Json]] = defaultdict(list)
        for item in self._kube.list_all(self._path(_EVENTS), labels={}, fields="type=Warning", keep=_trimmed_event):
            by_uid[item["involvedObject"].get("uid", "")].append(item)
        return by_uid

    def _list_workloads(self) -> dict[str, Json]:
        items = self._kube.list_all(self._path(_WORKLOADS), labels={}, keep=_trimmed)
        return {owner["uid"]: item for item in items for owner in item["metadata"].get("ownerReferences", ())}

    def _path(self, collection: str) -> str:
        return collection.format(namespace=self._kube.namespace)


def open_launcher(settings: Settings, environ: Mapping[str, str]) -> ClusterLauncher:
    """The launcher that the settings name, against the API server that this process belongs to. Raises Invalid."""
    kube = Kube.open(namespace=settings.namespace, kubeconfig=environ.get("KUBECONFIG", ""))
    return ClusterLauncher(kube, KINDS[settings.launcher], settings=settings)


def _run(item: Json) -> _Run:
    metadata = item["metadata"]
    num_nodes, num_processes = _counts(item) or (1, 1)
    active = ActiveRun(
        name=metadata["name"],
        tenant=metadata["labels"][f"{pod.LABEL}tenant"],
        num_gpus=num_nodes * num_processes,
        is_queued=is_suspended(item),
    )
    return _Run(item=_trimmed(item), active=active, num_nodes=num_nodes, is_over=is_over(item))


def _is_ours(item: Json) -> bool:
    """Whether dispatch made it: everything that is read of a run is there."""
    labels = item["metadata"].get("labels", {})
    return (
        pod.MANAGED_BY.items() <= labels.items()
        and is_id(labels.get(f"{pod.LABEL}job", ""))
        and {f"{pod.LABEL}tenant", f"{pod.LABEL}attempt"} <= labels.keys()
        and _counts(item) is not None
    )


def _counts(item: Json) -> tuple[int, int] | None:
    """Nodes and processes per node, by the plan that stands at the run; None if it is not readable any more."""
    try:
        plan = json.loads(item["metadata"]["annotations"][pod.PLAN])
        return int(plan["num_nodes"]), int(plan["num_processes"])
    except (KeyError, TypeError, ValueError):
        return None


def _run_of_pod(item: Json) -> str:
    labels = item["metadata"]["labels"]
    return f"{labels.get(f'{pod.LABEL}job')}-a{labels.get(f'{pod.LABEL}attempt')}"


def _trimmed(item: Json) -> Json:
    """What is read of a run or a workload. A list of a thousand whole ones would take a hundred megabytes."""
    names = ("name", "uid", "labels", "annotations", "ownerReferences", "creationTimestamp", "deletionTimestamp")
    return _compact(
        metadata=_only(item["metadata"], names),
        spec=_only(item.get("spec", {}), ("suspend", "runPolicy", "active")),
        status=_only(item.get("status", {}), ("conditions",)),
    )


def _trimmed_pod(item: Json) -> Json:
    """What is read of a pod."""
    status = item.get("status", {})
    containers = {
        name: [_only(container, ("name", "state")) for container in status[name]]
        for name in ("containerStatuses", "initContainerStatuses")
        if name in status
    }
    conditions = [c for c in status.get("conditions", ()) if c["type"] in ("PodScheduled", "DisruptionTarget")]
    return _compact(
        metadata=_only(item["metadata"], ("name", "labels", "creationTimestamp", "deletionTimestamp")),
        spec=_only(item.get("spec", {}), ("nodeName",)),
        status={**_only(status, ("phase", "reason", "message")), "conditions": conditions, **containers},
    )


def _trimmed_event(item: Json) -> Json:
    """What is read of a warning."""
    return _compact(**_only(item, ("reason", "message", "involvedObject")))


def _compact(**parts: Json) -> Json:
    """A copy of its own: parts of a page would keep the memory of the whole page from being given back."""
    copy: Json = json.loads(json.dumps(parts))
    return copy


def _only(item: Json, names: tuple[str, ...]) -> Json:
    return {name: item[name] for name in names if name in item}
