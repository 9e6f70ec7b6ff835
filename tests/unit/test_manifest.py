"""The manifests of runs: what is in them whatever a request says, and what an operator's overlay may change."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract.errors import Invalid
from engine.contract.job import derived_id, run_name
from engine.contract.request import parse
from functions.dispatch.launchers import pod
from functions.dispatch.launchers.cluster import KINDS
from functions.dispatch.launchers.indexedjob import service
from functions.dispatch.launchers.overlay import check, merge
from functions.dispatch.launchers.pod import engine_environ, read_overlay
from tests.make import JOB, a_job, an_order
from tests.unit.values import bodies

TENANTS = r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?"
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def manifest(kind: str, num_nodes: int = 2, **over: Any) -> dict[str, Any]:
    return KINDS[kind].manifest(an_order(num_nodes, **over))


def templates(made: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a manifest."""
    spec = made["spec"]
    return [spec["template"]] if "template" in spec else [r["template"] for r in spec["pytorchReplicaSpecs"].values()]


def container(made: dict[str, Any]) -> dict[str, Any]:
    [found] = templates(made)[0]["spec"]["containers"]
    return found


def environ(made: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(made)["env"]}


def all_labels(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value.get("labels", {}).values()
        for part in value.values():
            yield from all_labels(part)
    elif isinstance(value, list):
        for part in value:
            yield from all_labels(part)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(body=bodies())
def test_nothing_of_a_request_is_in_a_manifest(kind: str, body: dict[str, Any]) -> None:
    """Prompt, metadata, webhook: byte for byte the same manifest, whatever stands in them."""
    asked = replace(a_job(), request=parse({**body, "priority": "normal"}, job=JOB))

    assert json.dumps(manifest(kind, job=asked)) == json.dumps(manifest(kind))


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.text(), attempt=st.integers(1, 99), tenant=st.from_regex(TENANTS, fullmatch=True))
def test_names_and_labels_are_ones_that_kubernetes_takes(kind: str, seed: str, attempt: int, tenant: str) -> None:
    job = replace(a_job(), id=derived_id(tenant, "test", seed), tenant=tenant)

    made = manifest(kind, job=job, attempt=attempt, queue="video")

    # Services named after it, <run>-master-0, have 63 characters at most; the first must be a letter.
    assert re.fullmatch(r"[a-z][-a-z0-9]{0,53}", made["metadata"]["name"])
    assert [value for value in all_labels(made) if not LABEL_VALUE.fullmatch(value)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_holds_what_a_cluster_needs_to_end_it(kind: str) -> None:
    made = manifest(kind)
    spec = made["spec"]
    policy = spec.get("runPolicy", spec)

    assert (policy["backoffLimit"], policy["ttlSecondsAfterFinished"]) == (0, 86_400)
    assert len(templates(made)) == (2 if kind == "pytorchjob" else 1)
    for template in templates(made):
        assert template["spec"]["activeDeadlineSeconds"] == 3600
        assert template["spec"]["terminationGracePeriodSeconds"] == 120
        assert template["spec"]["automountServiceAccountToken"] is False
    assert container(made)["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert "--rdzv-conf=timeout=300" in container(made)["args"]
    assert "suspend" not in json.dumps(made)
    assert "finalizers" not in json.dumps(made)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_keeps_the_restricted_pod_security_standard(kind: str) -> None:
    for template in templates(manifest(kind)):
        spec = template["spec"]
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        assert spec["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        allowed = {"emptyDir", "configMap", "secret", "persistentVolumeClaim", "projected", "csi", "ephemeral"}
        assert [volume for volume in spec["volumes"] if not allowed & volume.keys()] == []
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()


def test_a_pytorchjob_on_one_node_has_a_master_alone() -> None:
    assert manifest("pytorchjob", 1)["spec"]["pytorchReplicaSpecs"].keys() == {"Master"}
    assert manifest("pytorchjob", 3)["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 2
    assert manifest("pytorchjob", 2)["spec"]["nprocPerNode"] == "2"


def test_an_indexed_job_tells_torchrun_where_its_master_is() -> None:
    run = run_name(JOB, 1)

    assert environ(manifest("indexedjob", 2))["PET_MASTER_ADDR"] == f"{run}-0.{run}"
    assert environ(manifest("indexedjob", 1))["PET_MASTER_ADDR"] == "127.0.0.1"
    made = service(an_order(2), {"metadata": {"uid": "u1"}})
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u1"
    assert service(an_order(1), {"metadata": {"uid": "u1"}}) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_and_its_priority_come_from_the_settings_and_the_request(kind: str) -> None:
    job = a_job()
    urgent = replace(job, request=replace(job.request, priority="high"))

    labels = manifest(kind, job=urgent, queue="video")["metadata"]["labels"]

    assert labels["kueue.x-k8s.io/queue-name"] == "video"
    assert labels["kueue.x-k8s.io/priority-class"] == "cinevent-high"
    assert not [name for name in manifest(kind)["metadata"]["labels"] if "kueue" in name]


def test_the_engine_gets_what_dispatch_knows_and_no_secret_of_it() -> None:
    given_environ = {
        "CINEVENT_NATS_URL": "nats://nats:4222",
        "CINEVENT_STORE_URL": "s3://videos/made",
        "CINEVENT_WEBHOOK_SECRET": "whsec_secret",
        "CINEVENT_NATS_CREDS": "/etc/nats/dispatch.creds",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HOME": "/root",
    }

    assert engine_environ(given_environ) == {
        "CINEVENT_NATS_URL": "nats://nats:4222",
        "CINEVENT_STORE_URL": "s3://videos/made",
    }
    assert engine_environ({"CINEVENT_NATS_URL": "nats://a:4222,nats://user:secret@b:4222"}) == {}


def test_an_overlay_changes_the_template_and_not_what_is_the_jobs_own() -> None:
    overlay = check(
        {
            "metadata": {
                "annotations": {"networks": "rdma"},
                "labels": {"cinevent.io/job": "another"},
            },
            "spec": {
                "nodeSelector": {"gpu": "h100"},
                "activeDeadlineSeconds": 1,
                "tolerations": [],
                "volumes": [{"name": "models", "$patch": "replace", "persistentVolumeClaim": {"claimName": "wan"}}],
                "containers": [
                    {
                        "name": "pytorch",
                        "image": "registry.example/engine:own",
                        "env": [{"name": "NCCL_IB_HCA", "value": "mlx5"}, {"name": "CINEVENT_JOB", "value": "another"}],
                        "resources": {"limits": {"nvidia.com/gpu": None, "amd.com/gpu": 8}},
                    }
                ],
            },
        }
    )
    made = manifest("pytorchjob", overlay=overlay)
    template = templates(made)[0]
    spec = template["spec"]

    assert template["metadata"]["annotations"]["networks"] == "rdma"
    assert (spec["nodeSelector"], spec["tolerations"]) == ({"gpu": "h100"}, [])
    assert {"name": "models", "persistentVolumeClaim": {"claimName": "wan"}} in spec["volumes"]
    assert [volume["name"] for volume in spec["volumes"]] == ["shm", "tmp", "models"]
    assert container(made)["image"] == "registry.example/engine:own"
    assert container(made)["resources"]["limits"] == {"amd.com/gpu": 8}
    assert environ(made)["NCCL_IB_HCA"] == "mlx5"
    assert environ(made)["CINEVENT_JOB"] == JOB
    assert template["metadata"]["labels"]["cinevent.io/job"] == JOB
    assert spec["activeDeadlineSeconds"] == 3600


def test_a_patch_merges_as_kubernetes_defines_it() -> None:
    base = {
        "a": 1,
        "b": {"c": 2, "d": 3},
        "env": [{"name": "x", "value": "1"}, {"name": "y", "value": "2"}],
        "args": ["1"],
    }
    patch = {
        "a": None,
        "b": {"c": 4},
        "env": [{"name": "y", "$patch": "delete"}, {"name": "x", "value": "3"}, {"name": "z", "value": "4"}],
        "args": ["2"],
    }

    assert merge(base, patch) == {
        "b": {"c": 4, "d": 3},
        "env": [{"name": "x", "value": "3"}, {"name": "z", "value": "4"}],
        "args": ["2"],
    }
    assert merge(base, {"b": {"$patch": "replace", "e": 5}})["b"] == {"e": 5}
    assert "b" not in merge(base, {"b": {"$patch": "delete"}})
    assert base["env"][0] == {"name": "x", "value": "1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a list", "allowed: a map with `metadata` and `spec`"),
        ("kind: Pod\nspec: {}", "allowed: a map with `metadata` and `spec`"),
        ("spec: [", "cannot be read as YAML"),
        ("spec: {containers: [{image: x}]}", "/spec/containers/0: an element of this list needs `name`"),
        ("spec: {nodeSelector: {$patch: remove}}", "allowed: $patch with delete, replace or merge"),
        ("spec: {$setElementOrder/containers: []}", "allowed: $patch with delete, replace or merge"),
        ("spec: {containers: [{name: pytorch, $patch: delete}]}", "takes away the container 'pytorch'"),
    ],
)
def test_an_overlay_that_cannot_be_applied_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text(text)

    with pytest.raises(Invalid) as caught:
        read_overlay(str(path))

    assert "CINEVENT_RUN_OVERLAY" in str(caught.value)
    assert said in str(caught.value)


def test_an_overlay_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="overlay\\.yaml cannot be read"):
        read_overlay(str(tmp_path / "overlay.yaml"))


def test_without_an_overlay_nothing_is_merged(tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text("# nothing yet\n")

    assert read_overlay("") == read_overlay(str(path)) == {}


def test_what_is_counted_of_a_run_is_in_its_plan() -> None:
    annotations = manifest("pytorchjob")["metadata"]["annotations"]

    assert json.loads(annotations[pod.PLAN])["num_nodes"] == 2


def test_a_manifest_is_the_same_on_every_day() -> None:
    later = replace(a_job(), created_at=datetime(2030, 1, 1, tzinfo=UTC))

    assert manifest("pytorchjob", job=later) == manifest("pytorchjob")
