"""knative/: what the manifests promise, read from what kustomize makes of them."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from engine.contract.models import CATALOG
from engine.contract.request import PRIORITIES
from engine.contract.settings import Settings, env_name
from engine.contract.streams import CONSUMERS, SOURCES, STREAMS
from functions.dispatch import hint
from functions.dispatch.launchers.pod import MANAGED_BY
from functions.gunicorn_conf import threads
from knative.generate import stale, write
from knative.render import OVERLAYS, load
from tests.manifests import FUNCTIONS, RENDERS, data, objects, of, pods

ROOT = Path(__file__).parents[2]
# Read by Python and boto3, not by Settings.
FOREIGN = {"PYTHONUNBUFFERED", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
KSVC = "serving.knative.dev/v1"


def test_no_generated_manifest_is_stale(tmp_path: Path) -> None:
    """`make docs` brings them in step."""
    write(tmp_path)

    assert stale() == stale(tmp_path) == []
    assert stale(tmp_path / "empty") == ["base/sources.yaml", "components/nack/topology.yaml"]


@pytest.mark.parametrize("names", RENDERS, ids="+".join)
def test_every_object_has_one_place(names: tuple[str, ...]) -> None:
    places = [
        (item["apiVersion"], item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"])
        for item in objects(*names)
    ]

    assert len(set(places)) == len(places)


@pytest.mark.parametrize("names", RENDERS, ids="+".join)
def test_everything_of_a_namespace_is_in_one_that_is_made(names: tuple[str, ...]) -> None:
    whole_cluster = {"Namespace", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass"}
    namespaces = {item["metadata"].get("namespace") for item in objects(*names) if item["kind"] not in whole_cluster}

    assert namespaces == set(of("Namespace", *names))
    assert [item for item in objects(*names) if item["kind"] in whole_cluster and "namespace" in item["metadata"]] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variable_is_a_setting(overlay: str) -> None:
    known = {env_name(item.name) for item in fields(Settings)} | FOREIGN
    ours = {name: pod for name, pod in pods(overlay).items() if name != "s3"}
    made = [name for name in ("cinevent-s3", "cinevent-webhooks") if overlay == "dev" for name in data(name, overlay)]

    assert set(data("cinevent-settings", overlay)) <= known
    assert set(made) <= known
    assert [name for name, pod in ours.items() if any("env" in c for c in pod["spec"]["containers"])] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_of_an_overlay_are_valid(overlay: str) -> None:
    settings = Settings.read(data("cinevent-settings", overlay))

    assert settings.launcher in ("pytorchjob", "indexedjob")
    assert settings.namespace == "cinevent"
    assert settings.engine_image.rpartition(":")[2] not in ("", "latest")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_mounted_is_where_the_settings_say(overlay: str) -> None:
    settings = Settings.read(data("cinevent-settings", overlay))
    pod = pods(overlay)["dispatch"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    overlay_file = next(iter(data("cinevent-run-overlay", overlay)))

    assert settings.run_overlay == f"{mounts['run-overlay']}/{overlay_file}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_generated_names_are_known_where_they_are_used(overlay: str) -> None:
    """A ConfigMap or Secret that changes gets another name, so that pods start anew: whoever names it must follow."""
    made = {item["metadata"]["name"] for item in objects(overlay) if item["kind"] in ("ConfigMap", "Secret")}
    named = set(re.findall(r"'(?:name|secretName)': '([^']+)'", str([pod["spec"] for pod in pods(overlay).values()])))
    ours = {name for name in named if re.search(r"-[a-z0-9]{10}$", name)}

    assert ours <= made
    assert {"cinevent-settings", "cinevent-run-overlay"} & named == set()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_scales_to_zero_and_takes_what_its_threads_can(name: str) -> None:
    service = of("Service", "prod", version=KSVC)[name]
    template = service["spec"]["template"]

    assert template["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"] == "0"
    # Requests to submit may last as long as a job; the others get as many as their sources post at a time.
    consumers = [CONSUMERS[each] for kind in SOURCES.values() if kind.function == name for each in kind.consumers]
    posts = sum(min(consumer.slots, consumer.posts) for consumer in consumers)
    places = template["spec"]["containerConcurrency"]
    assert (places == threads) if name == "submit" else (posts <= places <= threads)
    assert f"functions.{name}.app:create_app()" in template["spec"]["containers"][0]["args"]


def test_only_submit_is_reached_from_outside() -> None:
    label = "networking.knative.dev/visibility"
    local = {name: item["metadata"]["labels"].get(label) for name, item in of("Service", "prod", version=KSVC).items()}

    assert local == {"submit": None, "dispatch": "cluster-local", "notify": "cluster-local"}


@pytest.mark.parametrize("name", ["dispatch", "notify"])
def test_a_function_waits_as_long_as_its_source(name: str) -> None:
    """A source waits 60 s; a function that Knative ends before would do its work twice."""
    assert of("Service", "prod", version=KSVC)[name]["spec"]["template"]["spec"]["timeoutSeconds"] == 60


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_consumer_has_a_source_that_starts_when_it_has_messages(consumer: str) -> None:
    kind = next(source for source in SOURCES.values() if consumer in source.consumers)
    name = f"source-{kind.name}"
    scaled = of("ScaledObject", "prod")[name]["spec"]
    trigger = next(t["metadata"] for t in scaled["triggers"] if t["metadata"]["consumer"] == consumer)

    assert scaled["scaleTargetRef"]["name"] in of("Deployment", "prod")
    assert scaled["minReplicaCount"] == 0
    assert trigger["stream"] == CONSUMERS[consumer].stream
    assert of("SinkBinding", "prod")[name]["spec"]["sink"]["ref"]["name"] == kind.function
    assert pods("prod")[name]["spec"]["containers"][0]["command"][-1] == kind.name


def test_dispatch_is_fed_in_order() -> None:
    """Two replicas of a source would overtake each other."""
    feeding = [f"source-{source.name}" for source in SOURCES.values() if source.function == "dispatch"]

    assert {of("ScaledObject", "prod")[name]["spec"]["maxReplicaCount"] for name in feeding} == {1}


def test_an_idle_installation_has_no_pod() -> None:
    """But those of NATS, which Helm installs."""
    scaled = {item["spec"]["scaleTargetRef"]["name"] for item in of("ScaledObject", "prod").values()}
    always = ("StatefulSet", "DaemonSet", "ApiServerSource", "ContainerSource", "Job", "Pod")

    assert set(of("Deployment", "prod")) == scaled
    assert [kind for kind in always if of(kind, "prod")] == []
    assert all(item["spec"]["suspend"] for item in of("CronJob", "prod").values())


def test_keda_owns_the_number_of_sources() -> None:
    assert [name for name, item in of("Deployment", "prod").items() if "replicas" in item["spec"]] == []


def test_keda_asks_for_the_account_that_nats_has() -> None:
    triggers = [trigger for item in of("ScaledObject", "dev").values() for trigger in item["spec"]["triggers"]]
    config = next(iter(data("nats-config", "dev").values()))

    assert {trigger["metadata"]["account"] for trigger in triggers} == {"CINEVENT"}
    assert re.search(r"^  CINEVENT \{ jetstream: enabled", config, re.MULTILINE)
    assert "sync_interval: always" in config


def test_nack_has_every_stream_and_consumer() -> None:
    streams, consumers = of("Stream", "dev", "nack"), of("Consumer", "dev", "nack")

    assert {item["spec"]["name"] for item in streams.values()} == {stream.name for stream in STREAMS}
    assert {item["spec"]["durableName"] for item in consumers.values()} == set(CONSUMERS)
    assert all(item["spec"]["preventDelete"] for item in [*streams.values(), *consumers.values()])


def test_the_broker_component_puts_a_broker_between_hints_and_dispatch() -> None:
    sink = of("ApiServerSource", "dev", "broker")["runs"]["spec"]["sink"]["ref"]
    trigger = of("Trigger", "dev", "broker")["dispatch"]["spec"]

    assert (sink["kind"], sink["name"]) == ("Broker", trigger["broker"])
    assert trigger["broker"] in of("Broker", "dev", "broker")
    assert trigger["subscriber"]["ref"]["name"] == "dispatch"
    assert {"retry", "backoffPolicy", "backoffDelay", "deadLetterSink"} <= set(trigger["delivery"])


def test_hints_are_of_the_runs_that_dispatch_makes_and_of_types_that_it_takes() -> None:
    source = of("ApiServerSource", "dev", "hints")["runs"]["spec"]
    prefix = of("Trigger", "dev", "broker")["dispatch"]["spec"]["filters"][0]["prefix"]["type"]

    assert {(each["apiVersion"], each["kind"]) for each in source["resources"]} == {
        ("kubeflow.org/v1", "PyTorchJob"),
        ("batch/v1", "Job"),
    }
    assert all(each["selector"]["matchLabels"] == MANAGED_BY for each in source["resources"])
    assert source["mode"] == "Resource"
    assert len([type_ for type_ in hint.TYPES if type_.startswith(prefix)]) == 3


def test_kueue_has_the_queue_and_the_priorities_that_runs_name() -> None:
    queue = data("cinevent-settings", "prod")["CINEVENT_KUEUE_QUEUE"]

    assert of("LocalQueue", "prod")[queue]["spec"]["clusterQueue"] in of("ClusterQueue", "prod")
    values = [of("WorkloadPriorityClass", "prod")[f"cinevent-{name}"]["value"] for name in PRIORITIES]
    assert len(set(values)) == len(values)
    assert values[list(PRIORITIES).index("high")] == max(values)


def test_nats_in_production_syncs_and_has_the_account_that_keda_asks_for() -> None:
    values = load((ROOT / "knative/nats/values.yaml").read_text())[0]
    config = values["config"]
    env = values["container"]["env"].values()
    secrets = {each["valueFrom"]["secretKeyRef"]["key"] for each in env if isinstance(each, dict)}

    assert config["jetstream"]["merge"]["sync_interval"] == "always"
    assert config["cluster"]["replicas"] == Settings.read(data("cinevent-settings", "prod")).nats_replicas == 3
    assert set(config["merge"]["accounts"]) == {"CINEVENT", config["merge"]["system_account"]}
    assert config["monitor"] == {"enabled": True, "port": 8222}
    assert secrets == {"cinevent", "sys"}


def test_tiny_models_need_no_weights_from_elsewhere() -> None:
    """What the overlay dev relies on: the engine's image brings them along."""
    assert [row.name for row in CATALOG.values() if not row.hub]


def test_the_component_func_leaves_the_functions_to_func() -> None:
    assert of("Service", "dev", "func", version=KSVC) == {}
    assert len(of("Deployment", "dev", "func")) == len(SOURCES)
