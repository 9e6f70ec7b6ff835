"""The pods of knative/: who they run as, what they may do, and that runs are held to the same."""

from collections.abc import Mapping
from typing import Any

import pytest

from functions.cli import make_parser
from functions.dispatch.launchers.overlay import check
from functions.dispatch.launchers.pod import template
from functions.doctor.report import PARTS
from knative.check import problems
from knative.render import OVERLAYS, load
from tests.make import an_order
from tests.manifests import RENDERS, data, of, pods

VOLUMES = {"name", "configMap", "emptyDir", "secret", "persistentVolumeClaim", "projected", "csi", "ephemeral"}


def restricted(pod: Mapping[str, Any]) -> list[str]:
    """What the profile `restricted` of Kubernetes' Pod Security Standards refuses in a pod."""
    whole = pod["spec"].get("securityContext", {})
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod["spec"].get(name)]
    allowed = {
        "configMap",
        "emptyDir",
        "secret",
        "persistentVolumeClaim",
        "projected",
        "downwardAPI",
        "csi",
        "ephemeral",
    }
    found += [volume["name"] for volume in pod["spec"].get("volumes", []) if not (set(volume) - {"name"}) <= allowed]
    for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
        own = {**whole, **container.get("securityContext", {})}
        rules = {
            "runAsNonRoot": own.get("runAsNonRoot") is True,
            "runAsUser": own.get("runAsUser") != 0,
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "privileged": not own.get("privileged"),
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "seccompProfile": own.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            # Beyond the profile.
            "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
        }
        found += [f"{container['name']}.{rule}" for rule, holds in rules.items() if not holds]
    return found


@pytest.mark.parametrize("names", RENDERS, ids="+".join)
def test_every_pod_is_restricted(names: tuple[str, ...]) -> None:
    assert {name: restricted(pod) for name, pod in pods(*names).items() if restricted(pod)} == {}
    assert (
        of("Namespace", *names)["cinevent"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    )


def run_of(overlay: str) -> dict[str, Any]:
    """The pod template of a run as dispatch makes it from an overlay's ConfigMap."""
    patch = load(data("cinevent-run-overlay", overlay)["overlay.yaml"])[0]
    return template(an_order(overlay=check(patch)))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_run_of_an_overlay_is_restricted_and_whole(overlay: str) -> None:
    run = run_of(overlay)

    assert restricted(run) == []
    assert run["spec"]["serviceAccountName"] in of("ServiceAccount", overlay)
    assert [volume for volume in run["spec"]["volumes"] if len(volume) != 2] == []
    resources = run["spec"]["containers"][0]["resources"]
    # A quantity may be a number; the client's model does not know.
    resources["limits"] = {name: str(value) for name, value in resources["limits"].items()}
    whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "run"}, "template": run}
    assert list(problems(whole, {})) == []


def test_a_run_of_the_overlay_dev_needs_no_gpu_and_one_of_prod_does() -> None:
    limits = {name: run_of(name)["spec"]["containers"][0]["resources"]["limits"] for name in OVERLAYS}

    assert ["nvidia.com/gpu" in limits[name] for name in ("dev", "prod")] == [False, True]


def test_the_secret_of_runs_is_made_under_the_name_that_their_template_has() -> None:
    named = run_of("dev")["spec"]["containers"][0]["envFrom"]

    assert [each["secretRef"]["name"] for each in named if "secretRef" in each] == ["cinevent-engine"]
    assert "cinevent-engine" in of("Secret", "dev")


def test_only_dispatch_and_who_looks_in_its_name_have_a_token() -> None:
    tokens = {name: pod["spec"].get("automountServiceAccountToken") for name, pod in pods("dev").items()}

    assert {name for name, token in tokens.items() if token is not False} == {"dispatch", "doctor"}
    assert pods("dev")["doctor"]["spec"]["serviceAccountName"] == "cinevent-dispatch"
    assert all(item["automountServiceAccountToken"] is False for item in of("ServiceAccount", "prod").values())


def test_every_account_that_a_pod_names_is_made() -> None:
    accounts = {pod["spec"].get("serviceAccountName", "default") for pod in pods("prod").values()}

    assert accounts < set(of("ServiceAccount", "prod"))


@pytest.mark.parametrize("names", RENDERS, ids="+".join)
def test_no_rule_has_a_star(names: tuple[str, ...]) -> None:
    rules = [rule for item in of("Role", *names).values() for rule in item["rules"]]

    assert of("ClusterRole", *names) == {}
    assert [rule for rule in rules if "*" in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]] == []
    assert [rule for rule in rules if "secrets" in rule["resources"]] == []


def test_every_image_has_a_version() -> None:
    images = {c["image"] for pod in pods("prod").values() for c in pod["spec"]["containers"]}

    assert [image for image in images if image.rpartition(":")[2] in ("", "latest") or ":" not in image] == []


def test_the_doctor_looks_at_parts_that_there_are() -> None:
    command = pods("dev")["doctor"]["spec"]["containers"][0]["command"]
    options = make_parser().parse_args(command[1:])

    assert set(options.parts) <= set(PARTS)
    assert options.nats_monitor == "http://nats-headless:8222"
