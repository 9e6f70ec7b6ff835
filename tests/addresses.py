"""Addresses that a webhook must never reach, and the ways in which one may be written: vectors for any such guard."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

# One or more of each special-purpose range, and what clouds answer on.
PRIVATE = (
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.96.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.254",
    "127.0.0.1",
    "127.0.0.2",
    "127.127.127.127",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "172.16.0.1",
    "172.17.0.1",
    "172.20.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.170",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.168.1.1",
    "192.168.49.2",
    "192.168.65.254",
    "192.168.255.255",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a9fe:a9fe",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:a00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd12:3456:789a::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff05::2",
)
PUBLIC = ("1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:800::200e")


def spellings(address: str) -> Iterator[str]:
    """The hosts of URLs that lead to this address for some reader of URLs: at least six of them."""
    parsed = ip_address(address)
    yield from _of_v4(parsed) if isinstance(parsed, IPv4Address) else _of_v6(parsed)


def _of_v4(address: IPv4Address) -> Iterator[str]:
    first, second, third, fourth = address.packed
    number = int(address)
    yield str(address)
    yield f"{address}."
    yield str(number)
    yield f"0x{number:x}"
    yield f"0x{first:x}.0x{second:x}.0x{third:x}.0x{fourth:x}"
    yield f"0{first:o}.0{second:o}.0{third:o}.0{fourth:o}"
    yield f"{first}.{number & 0xFFFFFF}"
    yield f"{first}.{second}.{number & 0xFFFF}"
    yield f"[::ffff:{address}]"
    yield f"[::ffff:{number >> 16:x}:{number & 0xFFFF:x}]"
    yield f"[64:ff9b::{number >> 16:x}:{number & 0xFFFF:x}]"
    yield f"[2002:{number >> 16:x}:{number & 0xFFFF:x}::1]"


def _of_v6(address: IPv6Address) -> Iterator[str]:
    yield f"[{address}]"
    yield f"[{address.exploded}]"
    yield f"[{str(address).upper()}]"
    yield f"[{address.exploded.upper()}]"
    groups = [int(group, 16) for group in address.exploded.split(":")]
    yield f"[{':'.join(f'{group:x}' for group in groups)}]"
    yield f"[{':'.join(f'{group:03x}' for group in groups)}]"
    yield f"[{address}%25lo]"
    yield f"[{address.exploded[:-9]}{IPv4Address(int(address) & 0xFFFFFFFF)}]"
