"""The guard at the socket, with real sockets: a canary listens on this machine, and nothing ever reaches it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import aiohttp
import dns.message
import dns.query
import dns.rdatatype
import dns.rrset
import pytest

from engine.contract.address import Policy
from functions.guard import Lookup, open_session
from tests.addresses import PRIVATE, spellings


class Canary:
    """Listens on every address of this machine, and counts who comes."""

    def __init__(self) -> None:
        self.hits = 0
        self._listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.hits += 1
                with connection:
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


class NameServer:
    """A real name server on loopback: each answer is the next of `answers`, over and over."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self._answers = answers
        self.num_asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        # Closing alone would not wake the thread.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(timeout=5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, sender = self._socket.recvfrom(4096)
            if not data:
                return
            query = dns.message.from_wire(data)
            addresses = self._answers[self.num_asked % len(self._answers)]
            self.num_asked += 1
            response = dns.message.make_response(query)
            name = query.question[0].name
            response.answer.append(dns.rrset.from_text(name, 0, "IN", "A", *addresses))
            self._socket.sendto(response.to_wire(), sender)

    async def lookup(self, host: str, _port: int) -> list[str]:
        """What the system's resolver would do with this server."""
        query = dns.message.make_query(f"{host}.", dns.rdatatype.A)
        answer = await asyncio.to_thread(dns.query.udp, query, "127.0.0.1", 5, self.port)
        return [str(item) for rrset in answer.answer for item in rrset]


@pytest.fixture
def canary() -> Iterator[Canary]:
    listening = Canary()
    yield listening
    listening.close()


def get(policy: Policy, urls: list[str], *, lookup: Lookup | None = None) -> list[int]:
    """The statuses of GETs of these, one session for all; 0 for none."""

    async def one(session: aiohttp.ClientSession, url: str) -> int:
        try:
            async with session.get(url, allow_redirects=False, timeout=aiohttp.ClientTimeout(total=5)) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return 0

    async def every() -> list[int]:
        async with open_session(policy, lookup=lookup) as session:
            return list(await asyncio.gather(*(one(session, url) for url in urls)))

    return asyncio.run(every())


def test_no_spelling_of_a_private_address_reaches_a_listener(canary: Canary) -> None:
    urls = [f"http://{host}:{canary.port}/" for address in PRIVATE for host in spellings(address)]

    statuses = get(Policy(ports=(canary.port,)), urls)

    assert len(urls) >= 60 * 6
    assert set(statuses) == {0}
    assert canary.hits == 0


def test_the_canary_would_be_reached_without_the_guard(canary: Canary) -> None:
    policy = Policy.read(allow="127.0.0.0/8,::1/128,localhost", deny="", ports="1")
    hosts = ("127.0.0.1", "127.0.0.2", "[::1]", "localhost")

    assert get(policy, [f"http://{host}:{canary.port}/" for host in hosts]) == [200] * 4
    assert canary.hits == 4


def test_a_name_server_that_answers_each_time_otherwise_leads_nowhere(canary: Canary) -> None:
    """DNS rebinding: the address that was judged is the one that is connected to."""
    public = ("192.0.2.1",)
    server = NameServer(public, ("127.0.0.1",), ("169.254.169.254",), (*public, "127.0.0.1"), ("10.0.0.1", "127.0.0.1"))
    # Documentation's address stands for a public one, so that no packet leaves this machine.
    policy = Policy.read(allow="192.0.2.1/32", deny="", ports=str(canary.port))
    urls = [f"http://name-{n}.example:{canary.port}/" for n in range(20)] * 2

    statuses = get(policy, urls[:20], lookup=impatient(server.lookup))

    assert set(statuses) == {0}
    assert server.num_asked == 20
    assert canary.hits == 0
    server.close()


def impatient(lookup: Lookup) -> Lookup:
    """Judged addresses of nobody are not waited for: the last step of a connection is left out for them."""

    async def looked_up(host: str, port: int) -> list[str]:
        addresses = await lookup(host, port)
        if addresses == ["192.0.2.1"]:
            raise OSError("it would go there")
        return addresses

    return looked_up


def test_a_name_is_resolved_once_and_its_judged_address_is_connected_to(canary: Canary) -> None:
    server = NameServer(("127.0.0.1",), ("169.254.169.254",))
    policy = Policy.read(allow="127.0.0.0/8", deny="", ports=str(canary.port))

    assert get(policy, [f"http://hook.example:{canary.port}/"], lookup=server.lookup) == [200]
    assert server.num_asked == 1
    assert canary.hits == 1
    server.close()
