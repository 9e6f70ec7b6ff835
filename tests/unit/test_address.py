"""Addresses that users may name: every private one is refused, in every spelling, and no public one is."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.address import Policy, refusal
from tests.addresses import PRIVATE, PUBLIC, spellings

CLOSED = Policy()


def test_the_vectors_are_many() -> None:
    assert len(PRIVATE) >= 60
    assert min(len(set(spellings(address))) for address in PRIVATE) >= 6


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_is_never_connected_to(address: str) -> None:
    assert not CLOSED.allows(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_connected_to(address: str) -> None:
    assert CLOSED.allows(ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_in_a_url_is_refused_in_every_spelling(address: str) -> None:
    for host in spellings(address):
        # A zone needs the network; it is judged at the socket.
        if "%" not in host:
            assert refusal(f"http://{host}/", CLOSED), host


@pytest.mark.parametrize("host", ["example.com", "hooks.example.co.uk", "xn--bcher-kva.example", "a-b.example.com."])
def test_a_public_name_may_be_resolved(host: str) -> None:
    assert refusal(f"https://{host}/hook", CLOSED) is None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "submit",
        "kubernetes.default",
        "kubernetes.default.svc",
        "nats.cinevent.svc.cluster.local",
        "nats.cinevent.svc.cluster.local.",
        "metadata.google.internal",
        "printer.local",
        "router.home.arpa",
        "127.1",
        "0x7f.1",
        "2130706433",
        "1.2.3.4.5",
        "exa mple.com",
        "-a.com",
        "a..com",
    ],
)
def test_a_name_of_the_network_or_machine_is_refused(host: str) -> None:
    if host == "kubernetes.default":
        # Nothing tells it from a public name; with its final dot it is looked for in the public tree alone.
        assert refusal(f"https://{host}/", CLOSED) is None
    else:
        assert refusal(f"https://{host}/", CLOSED), host


@pytest.mark.parametrize("port", [22, 25, 2375, 4222, 6443, 8080, 10250])
def test_only_some_ports_are_allowed(port: int) -> None:
    assert refusal(f"https://example.com:{port}/", CLOSED) == f"port {port} is not allowed; allowed: 80, 443, 8443"
    assert refusal("https://example.com:8443/", CLOSED) is None


def test_what_the_operator_allows_is_allowed_on_any_port_in_any_form() -> None:
    policy = Policy.read(allow="127.0.0.0/8,hooks.corp", deny="", ports="443")

    assert refusal("http://127.0.0.1:9000/", policy) is None
    assert refusal("http://hooks.corp:9000/", policy) is None
    assert policy.allows(ip_address("127.0.0.1"))
    assert policy.allows(ip_address("::ffff:127.0.0.1"))
    assert not policy.allows(ip_address("10.0.0.1"))
    assert refusal("http://other.corp:9000/", policy)


def test_what_the_operator_denies_is_denied() -> None:
    policy = Policy.read(allow="", deny="93.184.0.0/16,2606:4700::/32", ports="443")

    assert not policy.allows(ip_address("93.184.215.14"))
    assert not policy.allows(ip_address("2606:4700:4700::1111"))
    assert policy.allows(ip_address("8.8.8.8"))


@pytest.mark.parametrize(
    ("allow", "deny", "ports"),
    [("not a name", "", "443"), ("", "example.com", "443"), ("", "", "https"), ("", "", "0"), ("10.0.0.1/8", "", "1")],
)
def test_a_policy_that_cannot_be_read_is_refused(allow: str, deny: str, ports: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        Policy.read(allow=allow, deny=deny, ports=ports)


@given(st.ip_addresses(v=4, network="10.0.0.0/8") | st.ip_addresses(v=6, network="fc00::/7"))
def test_no_address_of_a_private_network_passes(address: object) -> None:
    assert not CLOSED.allows(ip_address(str(address)))


@given(st.ip_addresses(v=4))
def test_no_wrapper_passes_what_is_inside_it(address: object) -> None:
    number = int(address)  # type: ignore[call-overload]
    wrapped = [
        ip_network("::ffff:0:0/96")[number],
        ip_network("64:ff9b::/96")[number],
        ip_network("2002::/16")[number << 80],
    ]

    assert not any(CLOSED.allows(each) for each in wrapped)
