"""Writes the manifests that follow from engine/contract/streams.py: sources, streams and consumers.

`python -m knative.generate` writes them. With `--check` it writes nothing, and ends with 1 if some are stale.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from engine.adapters.topology import consumer_config, stream_config
from engine.contract.settings import Settings
from engine.contract.streams import CONSUMERS, SOURCES, STREAMS, Consumer, SourceKind, Stream

FOLDER = Path(__file__).parent
_HEAD = "# Made from engine/contract/streams.py by `make docs`; do not edit.\n"
_PART_OF = {"app.kubernetes.io/part-of": "cinevent"}
# Dispatch gets a tenant's requests in order, so from one source; a webhook that waits must not hold up the others.
_MAX_REPLICAS = {"dispatch": 1, "notify": 4}


def manifests() -> dict[str, str]:
    """Every generated file, by its name within knative/, and its text."""
    sources = [item for source in SOURCES.values() for item in _source(source)]
    topology = [*(_stream(stream) for stream in STREAMS), *(_consumer(consumer) for consumer in CONSUMERS.values())]
    return {"base/sources.yaml": _dump(sources), "components/nack/topology.yaml": _dump(topology)}


def stale(folder: Path = FOLDER) -> list[str]:
    """The files of a folder that are not what the code says."""
    return [name for name, text in manifests().items() if not _is(folder / name, text)]


def write(folder: Path = FOLDER) -> None:
    """Bring a folder in step with the code."""
    for name, text in manifests().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def _source(source: SourceKind) -> list[dict[str, Any]]:
    name = f"source-{source.name}"
    return [_deployment(name, source), _sink_binding(name, source), _scaled_object(name, source)]


def _deployment(name: str, source: SourceKind) -> dict[str, Any]:
    labels = {**_PART_OF, "app.kubernetes.io/name": name, "app.kubernetes.io/component": "source"}
    container = {
        "name": "source",
        "image": "cinevent-functions",
        "command": ["python", "-m", "functions.source", source.name],
        # The address of NATS with its password, where there is one, comes after that without.
        "envFrom": [
            {"configMapRef": {"name": "cinevent-settings"}},
            {"secretRef": {"name": "cinevent-nats", "optional": True}},
        ],
        "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "serviceAccountName": "cinevent-source",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # A source finishes what is on its way for up to 25 s.
        "terminationGracePeriodSeconds": 35,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    # No replicas: they are KEDA's, and applying this again must not set them back.
    spec = {
        "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return _object("apps/v1", "Deployment", name, spec, labels=labels)


def _sink_binding(name: str, source: SourceKind) -> dict[str, Any]:
    sink = {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": source.function}}
    spec = {"subject": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}, "sink": sink}
    return _object("sources.knative.dev/v1", "SinkBinding", name, spec)


def _scaled_object(name: str, source: SourceKind) -> dict[str, Any]:
    spec = {
        "scaleTargetRef": {"name": name},
        "minReplicaCount": 0,
        "maxReplicaCount": _MAX_REPLICAS[source.function],
        # How long the first event may wait before its source is started.
        "pollingInterval": 5,
        # Longer than the time between two looks at a job, so that a source stays while there is one.
        "cooldownPeriod": 120,
        "triggers": [_trigger(CONSUMERS[consumer]) for consumer in source.consumers],
    }
    return _object("keda.sh/v1alpha1", "ScaledObject", name, spec)


def _trigger(consumer: Consumer) -> dict[str, Any]:
    metadata = {
        # The headless service: in a cluster KEDA asks the consumer's leader by its pod's name below it.
        "natsServerMonitoringEndpoint": "nats-headless.cinevent.svc.cluster.local:8222",
        "account": "CINEVENT",
        "stream": consumer.stream,
        "consumer": consumer.name,
        # Messages in hand count too; a second replica is for a backlog beyond what one has in hand.
        "lagThreshold": "100",
        "activationLagThreshold": "0",
    }
    return {"type": "nats-jetstream", "metadata": metadata}


def _stream(stream: Stream) -> dict[str, Any]:
    config = stream_config(stream, 1)
    spec = {
        "name": config.name,
        "subjects": config.subjects,
        "retention": str(config.retention.value),
        "storage": str(config.storage.value),
        "maxAge": _duration(config.max_age),
        "maxMsgsPerSubject": config.max_msgs_per_subject,
        "replicas": config.num_replicas,
        "duplicateWindow": _duration(config.duplicate_window),
        "allowDirect": bool(config.allow_direct),
        "allowAtomicPublish": bool(config.allow_atomic),
        "allowMsgSchedules": bool(config.allow_msg_schedules),
        "allowMsgTtl": bool(config.allow_msg_ttl),
        # The log is the database: deleting this object must not delete it.
        "preventDelete": True,
    }
    return _object("jetstream.nats.io/v1beta2", "Stream", _dns(stream.name), spec)


def _consumer(consumer: Consumer) -> dict[str, Any]:
    config = consumer_config(consumer, ack_wait_s=Settings().ack_wait_s)
    spec = {
        "durableName": config.durable_name,
        "streamName": consumer.stream,
        "filterSubject": config.filter_subject,
        "deliverPolicy": str(config.deliver_policy.value),
        "ackPolicy": str(config.ack_policy.value),
        "ackWait": _duration(config.ack_wait),
        "maxDeliver": config.max_deliver,
        "maxAckPending": config.max_ack_pending,
        "replayPolicy": "instant",
        "preventDelete": True,
    }
    return _object("jetstream.nats.io/v1beta2", "Consumer", consumer.name, spec)


def _duration(seconds: float | None) -> str:
    """As Go reads it; empty for ever."""
    return f"{seconds:.10g}s" if seconds else ""


def _object(
    version: str, kind: str, name: str, spec: dict[str, Any], *, labels: dict[str, str] | None = None
) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "labels": labels or _PART_OF},
        "spec": spec,
    }


def _dns(name: str) -> str:
    return name.lower().replace("_", "-")


def _dump(objects: list[dict[str, Any]]) -> str:
    # No anchors: a reader may edit a copy of one object.
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, _data: Any) -> bool:
            return True

    return _HEAD + yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=120)


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def main() -> None:
    """Write the files, or only check them."""
    parser = argparse.ArgumentParser(prog="python -m knative.generate", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a file is stale")
    if not parser.parse_args().check:
        write()
    elif names := stale():
        sys.exit(f"in knative/, not in step with the code: {', '.join(names)}; run: make docs")


if __name__ == "__main__":
    main()
