"""Which addresses a URL of a user's may lead to: none inside the network that Cinevent runs in. Pure.

`refusal` judges a URL as it is written, `Policy.allows` one address that a socket is about to connect to. Names are
resolved elsewhere (functions/guard.py): a judgement of a name alone would be worth nothing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from engine.contract.text import words

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# The special-purpose registries of IANA, and what clouds have put outside of them. An address that holds another one
# inside is refused with its whole range: no receiver on the public Internet needs such a form.
_DENIED = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; 100.100.100.200 is Alibaba's metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's wire server
        "169.254.0.0/16",  # link-local; the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocols; 192.0.0.192 is Oracle's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "::/96",  # unspecified, loopback, and IPv4-compatible
        "::ffff:0:0/96",  # IPv4-mapped
        "::ffff:0:0:0/96",  # IPv4-translated
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",
        "100::/64",  # discard
        "100:0:0:1::/64",  # dummy
        "2001::/23",  # IETF protocols; Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # unique local
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local
        "ff00::/8",  # multicast
    )
)
# Names that only a cluster or a machine answers for, with all below them.
_DENIED_NAMES = ("localhost", "local", "internal", "svc", "cluster.local", "localdomain", "home.arpa", "onion")
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What is allowed where Cinevent runs."""

    allowed: tuple[Network, ...] = ()
    """Networks that may be reached although they are private; any port of theirs."""
    allowed_names: tuple[str, ...] = ()
    """Host names that may resolve to anything, on any port."""
    denied: tuple[Network, ...] = ()
    """Networks that are denied beside the private ones, such as a cluster's own with public addresses."""
    ports: tuple[int, ...] = (80, 443, 8443)

    @classmethod
    def read(cls, *, allow: str, deny: str, ports: str) -> "Policy":
        """The policy in three comma-separated lists: networks and names, networks, ports. Raises ValueError."""
        networks, names = [], []
        for word in words(allow):
            try:
                networks.append(ip_network(word))
            except ValueError:
                if not (_NAME.fullmatch(word) or word == "localhost"):
                    raise ValueError(f"{word!r} is neither a network, such as 127.0.0.0/8, nor a host name") from None
                names.append(word.lower())
        numbers = tuple(int(word) for word in words(ports))
        if not all(0 < number < 2**16 for number in numbers):
            raise ValueError(f"{ports!r} is not a list of ports")
        return cls(
            allowed=tuple(networks),
            allowed_names=tuple(names),
            denied=tuple(ip_network(word) for word in words(deny)),
            ports=numbers,
        )

    def allows(self, address: Address) -> bool:
        """Whether a socket may connect to `address`."""
        plain = _unwrapped(address)
        # An operator's word about a network counts, in whichever form its addresses come.
        if any(_within(each, self.allowed) for each in (address, plain)):
            return True
        return not any(_within(each, (*_DENIED, *self.denied)) for each in (address, plain)) and _is_public(address)

    def allows_name(self, host: str) -> bool:
        """Whether everything that `host` resolves to may be connected to."""
        return host.lower().rstrip(".") in self.allowed_names


def refusal(url: str, policy: Policy) -> str | None:
    """Why `url` may not be reached, whatever its name resolves to; None if that depends on the addresses."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme not in ("http", "https") or not host:
        return "allowed: http:// or https:// with a host"
    address = literal(host)
    if (address and _within(address, policy.allowed)) or policy.allows_name(host):
        return None
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    if port not in policy.ports:
        return f"port {port} is not allowed; allowed: {', '.join(map(str, policy.ports))}"
    if address:
        return None if policy.allows(address) else f"{host} is not a public address"
    return None if _is_public_name(host) else f"{host} is not the name of a public host"


def literal(host: str) -> Address | None:
    """The address that `host` is, if it is written as one in its usual form."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_public_name(host: str) -> bool:
    if not _NAME.fullmatch(host):
        # One word would be looked for in the cluster's own domains.
        return False
    labels = host.lower().split(".")
    # No public domain ends in a number: 127.1, 0x7f.1 and 2130706433 are addresses to getaddrinfo.
    is_number = re.fullmatch(r"\d+|0x[0-9a-f]*", labels[-1]) is not None
    suffixes = (".".join(labels[index:]) for index in range(len(labels)))
    return not is_number and not any(suffix in _DENIED_NAMES for suffix in suffixes) and "svc" not in labels


def _unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one, for those that hold one; else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.teredo:
        return address.teredo[1]
    if address.ipv4_mapped or address.sixtofour:
        return address.ipv4_mapped or address.sixtofour or address
    low = int(address) & 0xFFFFFFFF
    is_nat64 = _within(address, (ip_network("64:ff9b::/96"), ip_network("::/96"), ip_network("::ffff:0:0:0/96")))
    return IPv4Address(low) if is_nat64 else address


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _is_public(address: Address) -> bool:
    # Python's own list may know ranges that are newer than ours.
    return address.is_global and not address.is_multicast
