"""`cinevent doctor cluster`: what it says of clusters that lack something."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.contract.settings import Settings
from engine.contract.streams import SOURCES
from functions.doctor.finding import Finding, Verdict
from functions.doctor.report import Where, examine
from tests.kube_api import Call, KubeApi, Said

SETTINGS = Settings(
    launcher="pytorchjob", namespace="cinevent", engine_image="registry.example/engine:1.0", kueue_queue="videos"
)
GROUPS = (
    "serving.knative.dev/v1",
    "sources.knative.dev/v1",
    "keda.sh/v1alpha1",
    "kubeflow.org/v1",
    "kueue.x-k8s.io/v1beta1",
)
READY = (
    *(f"/apis/serving.knative.dev/v1/namespaces/cinevent/services/{name}" for name in ("submit", "dispatch", "notify")),
    *(f"/apis/sources.knative.dev/v1/namespaces/cinevent/sinkbindings/source-{name}" for name in SOURCES),
    *(f"/apis/keda.sh/v1alpha1/namespaces/cinevent/scaledobjects/source-{name}" for name in SOURCES),
)
QUEUE = "/apis/kueue.x-k8s.io/v1beta1/namespaces/cinevent/localqueues/videos"


class Cluster(KubeApi):
    """An API server that also knows which kinds it serves, and who may do what."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = list(GROUPS)
        self.forbidden: set[tuple[str, str]] = set()
        for path in READY:
            self.items[path] = an_object(path, "Ready", "True")
        self.items[QUEUE] = an_object(QUEUE, "Active", "True")

    def _answer(self, call: Call) -> Said:
        if call.path == "/apis":
            return Said(200, {"groups": [{"versions": [{"groupVersion": each}]} for each in self.groups]})
        if call.path == f"/apis/authorization.k8s.io/v1/{call.body.get('kind', '').lower()}s":
            asked = call.body["spec"]["resourceAttributes"]
            who = call.body["spec"].get("user", "oneself" if call.body["kind"][:4] == "Self" else "")
            is_known = who in ("oneself", "system:serviceaccount:cinevent:cinevent-dispatch")
            is_allowed = is_known and (asked["verb"], asked["resource"]) not in self.forbidden
            return Said(201, {**call.body, "status": {"allowed": is_allowed}})
        return super()._answer(call)


def an_object(path: str, kind: str, status: str, *, message: str = "") -> dict[str, Any]:
    condition = {"type": kind, "status": status, "message": message}
    return {"metadata": {"name": path.rpartition("/")[2], "uid": path}, "status": {"conditions": [condition]}}


@pytest.fixture
def api() -> Any:
    """In place of this folder's plain server."""
    server = Cluster()
    yield server
    server.close()


def findings(kubeconfig: Path, settings: Settings = SETTINGS) -> list[Finding]:
    return list(examine(settings, Where(kubeconfig=str(kubeconfig)), ["cluster"]))


def wrong(kubeconfig: Path, settings: Settings = SETTINGS) -> list[Finding]:
    return [finding for finding in findings(kubeconfig, settings) if finding.verdict is Verdict.WRONG]


def test_of_a_cluster_that_has_everything_all_is_ok(kubeconfig: Path) -> None:
    found = findings(kubeconfig)

    assert {finding.verdict for finding in found} == {Verdict.OK}
    assert [finding.part for finding in found].count("ready") == len(READY)
    assert {finding.part for finding in found} == {"kinds", "permissions", "image", "ready", "queue"}


@pytest.mark.parametrize("missing", GROUPS)
def test_a_missing_project_is_named_with_its_version(api: Cluster, kubeconfig: Path, missing: str) -> None:
    api.groups = [each for each in GROUPS if each != missing] + [f"{missing.partition('/')[0]}/v0"]

    found = wrong(kubeconfig)

    assert [(finding.part, finding.text) for finding in found] == [
        ("kinds", f"{missing} is not served; served: {missing.partition('/')[0]}/v0")
    ]
    assert "docs/operations.md" in found[0].fix


def test_a_missing_permission_is_named(api: Cluster, kubeconfig: Path) -> None:
    api.forbidden = {("delete", "pytorchjobs"), ("list", "workloads")}

    found = wrong(kubeconfig)

    assert [finding.part for finding in found] == ["permissions"]
    assert "may not delete pytorchjobs, list workloads" in found[0].text
    assert "kubectl apply -k" in found[0].fix


def test_a_function_that_is_not_ready_says_why(api: Cluster, kubeconfig: Path) -> None:
    api.items[READY[0]] = an_object(READY[0], "Ready", "False", message='secrets "cinevent-s3" not found')

    found = wrong(kubeconfig)

    assert [finding.text for finding in found] == ['ksvc submit is not Ready: secrets "cinevent-s3" not found']
    assert "kubectl -n cinevent describe ksvc submit" in found[0].fix


def test_a_source_and_a_queue_that_are_not_there_are_named(api: Cluster, kubeconfig: Path) -> None:
    del api.items[READY[-1]], api.items[QUEUE]

    parts = [(finding.part, finding.fix.partition(";")[0].rpartition(" ")[2]) for finding in wrong(kubeconfig)]

    assert parts == [("ready", READY[-1].rpartition("/")[2]), ("queue", "videos")]


@pytest.mark.parametrize("image", ["registry.example/engine", "registry.example/engine:latest", "registry:5000/engine"])
def test_an_image_without_a_version_is_wrong(kubeconfig: Path, image: str) -> None:
    found = wrong(kubeconfig, replace(SETTINGS, engine_image=image))

    assert [(finding.part, image in finding.text) for finding in found] == [("image", True)]


def test_without_a_queue_there_is_none_to_check(api: Cluster, kubeconfig: Path) -> None:
    del api.items[QUEUE]

    found = findings(kubeconfig, replace(SETTINGS, kueue_queue=""))

    assert [finding.part for finding in found if finding.verdict is not Verdict.OK] == ["queue"]


def test_inside_a_pod_it_asks_about_itself_and_sees_no_functions(api: Cluster, kubeconfig: Path) -> None:
    api.forbidden = {("list", "events")}
    where = Where(kubeconfig=str(kubeconfig), in_pod=True)

    found = list(examine(SETTINGS, where, ["cluster"]))

    assert [(finding.part, finding.verdict) for finding in found if finding.verdict is not Verdict.OK] == [
        ("permissions", Verdict.WRONG),
        ("ready", Verdict.NOT_CHECKED),
    ]
    assert any("this pod's account in cinevent may not list events" in finding.text for finding in found)
    assert {call.path.rpartition("/")[2] for call in api.calls if call.method == "POST"} == {"selfsubjectaccessreviews"}


def test_a_cluster_that_does_not_answer_is_one_wrong_line(api: Cluster, kubeconfig: Path) -> None:
    api.close()

    found = findings(kubeconfig)

    assert [(finding.part, finding.verdict) for finding in found] == [("cluster", Verdict.WRONG)]
    assert "does not answer" in found[0].text


def test_a_kubeconfig_that_is_none_is_one_wrong_line(tmp_path: Path) -> None:
    found = findings(tmp_path / "none")

    assert [(finding.part, finding.verdict) for finding in found] == [("cluster", Verdict.WRONG)]
    assert "KUBECONFIG" in found[0].fix
