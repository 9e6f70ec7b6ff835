"""The door to Kubernetes: what the real client and a server say to each other, and what becomes of refusals."""

import time
from pathlib import Path

import pytest

from engine.contract.errors import AtCapacity, CineventError, Conflict, Invalid, JobFailed, NotFound, Unavailable
from functions.dispatch.launchers import kube as door
from functions.dispatch.launchers.kube import Exists, Kube
from tests.kube_api import Call, KubeApi, Refused

pytestmark = pytest.mark.usefixtures("api")
RUNS = "/apis/kubeflow.org/v1/namespaces/default/pytorchjobs"
LABELS = {"app.kubernetes.io/managed-by": "cinevent-dispatch"}


def a_run(name: str) -> dict[str, object]:
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name, "labels": LABELS}}


def refuses(api: KubeApi, status: int, reason: str, message: str, **headers: str) -> None:
    """Have the server refuse every call so."""

    def refuse(_call: Call) -> None:
        raise Refused(status, reason, message, **headers)

    api.before = refuse


def test_what_is_created_is_read_found_and_deleted(kube: Kube) -> None:
    made = kube.create(RUNS, a_run("one"))

    assert kube.get(f"{RUNS}/one") == made
    assert kube.list_all(RUNS, labels=LABELS, keep=dict) == [made]
    kube.delete(f"{RUNS}/one", uid=made["metadata"]["uid"])
    assert kube.list_all(RUNS, labels=LABELS, keep=dict) == []
    with pytest.raises(NotFound):
        kube.get(f"{RUNS}/one")


def test_a_name_is_taken_once(kube: Kube) -> None:
    kube.create(RUNS, a_run("one"))

    with pytest.raises(Exists):
        kube.create(RUNS, a_run("one"))


def test_another_object_of_the_same_name_is_not_deleted(kube: Kube) -> None:
    kube.create(RUNS, a_run("one"))

    with pytest.raises(Conflict):
        kube.delete(f"{RUNS}/one", uid="of one that was before it")


def test_creation_asks_for_strict_validation(api: KubeApi, kube: Kube) -> None:
    """Without it a typo in an overlay is dropped without a word."""
    kube.create(RUNS, a_run("one"))

    assert api.calls[-1].query == {"fieldValidation": "Strict"}


def test_a_list_comes_in_pages_and_begins_anew_when_its_continuation_expires(
    api: KubeApi, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_PAGE", 3)
    names = [f"run-{number}" for number in range(8)]
    for name in names:
        kube.create(RUNS, a_run(name))
    api.num_expired = 2

    assert [item["metadata"]["name"] for item in kube.list_all(RUNS, labels=LABELS, keep=dict)] == names


def test_a_list_that_always_expires_ends(api: KubeApi, kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_PAGE", 1)
    for name in ("one", "two"):
        kube.create(RUNS, a_run(name))
    api.num_expired = 1000

    with pytest.raises(Unavailable, match="expires before it ends"):
        kube.list_all(RUNS, labels=LABELS, keep=dict)


@pytest.mark.parametrize(
    ("status", "reason", "message", "kind"),
    [
        (403, "Forbidden", 'admission webhook "validator.pytorchjob.training-operator.kubeflow.org" denied', JobFailed),
        (403, "Forbidden", "exceeded quota: count/pytorchjobs.kubeflow.org", AtCapacity),
        (403, "Forbidden", 'User "dispatch" cannot create resource "pytorchjobs"', Unavailable),
        (
            403,
            "Forbidden",
            "namespace video cannot take it because it is being terminated",
            Unavailable,
        ),
        (400, "BadRequest", 'strict decoding error: unknown field "spec.template.spec.nodeSelectr"', JobFailed),
        (422, "Invalid", "spec.template.spec.containers[0].image: Required value", JobFailed),
        (401, "Unauthorized", "Unauthorized", Unavailable),
        (404, "NotFound", 'namespaces "video" not found', Unavailable),
        (409, "Conflict", "the object has been modified", Conflict),
        (429, "TooManyRequests", "too many requests", Unavailable),
        (500, "InternalError", 'failed calling webhook "validator": connection refused', Unavailable),
        (503, "ServiceUnavailable", "apiserver is shutting down", Unavailable),
    ],
)
def test_a_refused_creation_is_told_apart(
    api: KubeApi, kube: Kube, status: int, reason: str, message: str, kind: type[CineventError]
) -> None:
    refuses(api, status, reason, message)

    with pytest.raises(CineventError) as caught:
        kube.create(RUNS, a_run("one"))

    assert type(caught.value) is kind
    assert message in str(caught.value)


def test_the_servers_own_time_to_wait_is_obeyed(api: KubeApi, kube: Kube) -> None:
    refuses(api, 429, "TooManyRequests", "too many requests", **{"Retry-After": "7"})

    with pytest.raises(Unavailable) as caught:
        kube.get(f"{RUNS}/one")

    assert caught.value.retry_after_s == 7


def test_a_kind_that_the_cluster_does_not_have_is_no_missing_object(kube: Kube) -> None:
    with pytest.raises(Unavailable, match="404"):
        kube.get("/apis/kubeflow.org/v1/pytorchjobs")


def test_a_server_that_does_not_answer_costs_one_timeout(
    api: KubeApi, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_TIMEOUT_S", (0.2, 0.2))
    api.before = lambda _call: time.sleep(1)

    with pytest.raises(Unavailable, match="does not answer"):
        kube.create(RUNS, a_run("one"))

    assert len(api.calls) == 1


def test_a_server_that_is_away_is_unavailable(api: KubeApi, kube: Kube) -> None:
    api.close()

    with pytest.raises(Unavailable, match="does not answer"):
        kube.get(f"{RUNS}/one")


def test_without_a_cluster_the_reason_is_said(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="run in a pod with a service account, or set KUBECONFIG"):
        Kube.open(kubeconfig=str(tmp_path / "none"))
