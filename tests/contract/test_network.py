"""Network policies, as Kubernetes reads them: which pod reaches which. What is needed passes, and nothing else."""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.manifests import FUNCTIONS, of, pods

PART = "app.kubernetes.io/component"
ELSEWHERE = {
    "gateway": ("kourier-system", {}),
    "activator": ("knative-serving", {}),
    "keda": ("keda", {}),
    "dns": ("kube-system", {}),
    "stranger": ("other", {}),
}
INTERNET, API_SERVER, METADATA, NEIGHBOUR = "93.184.216.34", "10.96.0.1", "169.254.169.254", "10.1.2.3"
FLOWS = {
    **{("gateway", name): 8012 for name in FUNCTIONS},
    **{("activator", name): 8012 for name in FUNCTIONS},
    **{("source", "gateway"): 8081},
    **{(name, "nats"): 4222 for name in (*FUNCTIONS, "source", "engine", "doctor")},
    **{(name, "s3"): 7070 for name in (*FUNCTIONS, "engine", "doctor")},
    **{(name, "dns"): 53 for name in (*FUNCTIONS, "source", "engine", "doctor", "nats", "s3")},
    ("keda", "nats"): 8222,
    ("nats", "nats"): 6222,
    ("engine", "engine"): 29500,
    **{(name, API_SERVER): 443 for name in ("dispatch", "doctor")},
    **{(name, INTERNET): 443 for name in ("dispatch", "doctor")},
    ("notify", INTERNET): 443,
}
"""Who reaches whom in the overlay dev, at which port. dispatch reaches any address on 443: one is the API server's."""


def ends() -> dict[str, tuple[str, dict[str, str]]]:
    """Namespace and labels of every kind of pod, ours and others."""
    ours = {
        pod["metadata"]["labels"].get(PART, name): ("cinevent", pod["metadata"]["labels"])
        for name, pod in pods("dev").items()
    }
    engine = ("cinevent", {PART: "engine", "app.kubernetes.io/managed-by": "cinevent-dispatch"})
    return {**ours, "engine": engine, **ELSEWHERE}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    among = all(labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", []))
    return wanted and among


def is_peer(peer: Mapping[str, Any], end: str) -> bool:
    """Whether a peer of a rule means this pod, or this address."""
    if block := peer.get("ipBlock"):
        return end not in ends() and is_in_block(block, end)
    if end not in ends():
        return False
    namespace, labels = ends()[end]
    if "namespaceSelector" in peer:
        is_near = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
    else:
        is_near = namespace == "cinevent"
    return is_near and selects(peer.get("podSelector", {}), labels)


def is_in_block(block: Mapping[str, Any], address: str) -> bool:
    without = any(ip_address(address) in ip_network(part) for part in block.get("except", []))
    return ip_address(address) in ip_network(block["cidr"]) and not without


def allows(end: str, other: str, port: int, *, way: str, overlay: str) -> bool:
    """Whether the policies of pod `end` let it have this connection; a pod that none selects may have any."""
    if end not in ends() or ends()[end][0] != "cinevent":
        return True
    policies = [item["spec"] for item in of("NetworkPolicy", overlay).values()]
    mine = [spec for spec in policies if selects(spec["podSelector"], ends()[end][1])]
    binding = [spec for spec in mine if way.capitalize() in spec["policyTypes"]]
    rules = [rule for spec in binding for rule in spec.get(way, [])]
    peers = {"ingress": "from", "egress": "to"}[way]
    return not binding or any(
        (peers not in rule or any(is_peer(peer, other) for peer in rule[peers]))
        and ("ports" not in rule or port in [each["port"] for each in rule["ports"]])
        for rule in rules
    )


def flows(one: str, other: str, port: int, *, overlay: str = "dev") -> bool:
    out = allows(one, other, port, way="egress", overlay=overlay)
    return out and allows(other, one, port, way="ingress", overlay=overlay)


@pytest.mark.parametrize("flow", FLOWS, ids="-to-".join)
def test_a_needed_flow_is_let_through(flow: tuple[str, str]) -> None:
    assert flows(*flow, FLOWS[flow])


def test_nothing_else_is_let_through() -> None:
    ports = sorted(set(FLOWS.values()) | {22, 80, 6443, 8080})
    ours = [name for name, (namespace, _) in ends().items() if namespace == "cinevent"]
    everyone = [*ends(), INTERNET, API_SERVER, METADATA, NEIGHBOUR]
    pairs = {(one, other) for one in ours for other in everyone} | {(one, other) for one in ends() for other in ours}

    open_ways = {pair for pair in pairs for port in ports if flows(*pair, port)}

    # An API server may have an address like a neighbour's.
    assert open_ways - set(FLOWS) == {("dispatch", NEIGHBOUR), ("doctor", NEIGHBOUR)}


@pytest.mark.parametrize(
    "address", [METADATA, NEIGHBOUR, API_SERVER, "127.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"]
)
def test_webhooks_reach_nothing_inside(address: str) -> None:
    assert [port for port in (80, 443, 4222, 6443, 8080) if flows("notify", address, port)] == []


@pytest.mark.parametrize("name", [*FUNCTIONS, "engine"])
def test_on_a_gpu_cluster_the_store_is_reached_over_https(name: str) -> None:
    assert flows(name, INTERNET, 443, overlay="prod")
    assert not flows(name, METADATA, 443, overlay="prod")


def test_the_doctor_reads_the_monitor_of_nats() -> None:
    assert flows("doctor", "nats", 8222)
