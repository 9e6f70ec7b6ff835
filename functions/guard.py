"""The guard at the socket: HTTP to addresses that users named, and never into the network that Cinevent runs in.

A name is resolved once per connection, all of its addresses are judged, and the socket goes to one that was: an answer
that changes afterwards changes nothing. What is judged, and how, is contract/address.py's.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from engine.contract.address import Policy

Lookup = Callable[[str, int], Awaitable[list[str]]]
"""Gives the addresses of a host name; raises OSError."""

# Lookups wait in threads, up to half a minute for a name server that is silent: one bad name must not hold up the rest.
_LOOKUPS = 64


class NotAllowed(OSError):
    """The address is not one that a user may send us to. The message does not say what it is."""


def open_session(policy: Policy, *, lookup: Lookup | None = None, **more: Any) -> aiohttp.ClientSession:
    """A session that connects to allowed addresses only; to be made inside a running event loop.

    No proxy of the environment, no cookies, no decompression; whoever uses it says `allow_redirects=False`.
    """
    resolver = _Resolver(policy, lookup)
    connector = aiohttp.TCPConnector(
        resolver=resolver,
        use_dns_cache=False,
        socket_factory=resolver.socket_to,
        # No limit in all: the caller has one per endpoint.
        limit=0,
    )
    return aiohttp.ClientSession(
        connector=connector,
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=2**14,
        **more,
    )


class _Resolver(AbstractResolver):
    """Resolves and judges; literals, which aiohttp does not resolve, are judged when their socket is made."""

    def __init__(self, policy: Policy, lookup: Lookup | None) -> None:
        self._policy = policy
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")
        self._lookup = lookup or self._system
        self._by_name: set[str] = set()
        """Addresses of the names that the operator allows whatever they resolve to."""

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002  (aiohttp's protocol)
    ) -> list[ResolveResult]:
        """The addresses of a name, if all of them are allowed. Raises OSError, NotAllowed among them."""
        addresses = await self._lookup(host, port)
        if self._policy.allows_name(host):
            self._by_name.update(addresses)
        elif not all(self._policy.allows(ip_address(address)) for address in addresses):
            raise NotAllowed(f"{host} is not allowed")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family_of(address), proto=0, flags=0)
            for address in addresses
        ]

    async def close(self) -> None:
        """Take no more lookups; those under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def socket_to(self, info: Any) -> socket.socket:
        """The socket for an address that is about to be connected to. Raises NotAllowed."""
        family, kind, protocol, _, target = info
        # A link-local address carries its interface.
        address = str(target[0]).partition("%")[0]
        if address not in self._by_name and not self._policy.allows(ip_address(address)):
            raise NotAllowed(f"{address} is not allowed")
        return socket.socket(family, kind, protocol)

    async def _system(self, host: str, port: int) -> list[str]:
        # The dot ends a name: without it a pod would look for it in the domains of its cluster as well.
        name = host if self._policy.allows_name(host) else f"{host.rstrip('.')}."
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(target[0]).partition("%")[0] for *_, target in found))


def family_of(address: str) -> socket.AddressFamily:
    """The family of a socket to this address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET
