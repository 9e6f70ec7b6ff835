"""submit under gunicorn against clients that misbehave, a log that dies, and its own end: what others get meanwhile."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.e2e.served import Served, a_submit
from tests.make import a_body
from tests.servers import wait_until

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with a_submit(tmp_path_factory.mktemp("served")) as running:
        wait_until(lambda: call(running, "GET", "/readyz").status == 200, what="submit is ready")
        yield running


def call(served: Served, method: str, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
    with urllib3.PoolManager(retries=False, timeout=20) as http_:
        return http_.request(
            method, f"{served.url}{path}", headers={**served.headers, **more.pop("headers", {})}, **more
        )


def submit(served: Served, **headers: str) -> urllib3.BaseHTTPResponse:
    return call(served, "POST", "/api/v1/generate", body=json.dumps(a_body()), headers={**JSON, **headers})


@contextlib.contextmanager
def half_open(served: Served, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that sent this and then nothing."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_connection(("127.0.0.1", served.port), 10)) for _ in range(count)]
        for each in made:
            each.sendall(sent)
        yield made


HALVES = {
    "nothing": b"",
    "half a header": b"GET /api/v1/jobs HT",
    "half a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
}


@pytest.mark.parametrize("sent", HALVES.values(), ids=HALVES)
def test_others_are_served_while_many_clients_send_half_a_request(served: Served, sent: bytes) -> None:
    with half_open(served, 150, sent):
        assert submit(served).status == 202


@pytest.mark.parametrize("path", ["/api/v1/generate", "/api/v1/uploads/a.png", "/v1/videos"])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_without_end_is_refused_and_never_held_in_memory(served: Served, path: str, is_chunked: bool) -> None:
    """A gigabyte is promised; nobody reads more of it than is allowed."""
    submit(served)
    before = served.memory_bytes()
    head = b"\x89PNG\r\n\x1a\n" if "uploads" in path else b"{"
    kind = "image/png" if "uploads" in path else "application/json"
    length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {2**30}"
    method = "PUT" if "uploads" in path else "POST"
    key = served.headers["Authorization"]
    with socket.create_connection(("127.0.0.1", served.port), 20) as connection:
        headers = f"Host: x\r\nAuthorization: {key}\r\nContent-Type: {kind}\r\n{length}"
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        status = pour(connection, head, is_chunked=is_chunked)

    assert status == 413
    assert served.memory_bytes() - before < 64 * 2**20
    assert submit(served).status == 202


def pour(connection: socket.socket, head: bytes, *, is_chunked: bool) -> int:
    """Send without end until there is an answer; its status."""
    piece = head.ljust(2**16, b" ")
    data = f"{len(piece):x}\r\n".encode() + piece + b"\r\n" if is_chunked else piece
    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append(read_some(connection)))
    reader.start()
    sent = 0
    # Whoever is refused may be cut off before all is sent.
    with contextlib.suppress(OSError):
        while not answers and sent < 2**30:
            connection.sendall(data)
            sent += len(piece)
    reader.join(20)
    assert sent < 2**28
    return int(answers[0].split()[1])


def read_some(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b"HTTP/1.1 0"


RUBBISH = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
    "a long line": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % n for n in range(200)) + b"\r\n",
    "a long header": b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000 + b"\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    "a bad length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a bad chunk": b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("sent", RUBBISH.values(), ids=RUBBISH)
def test_what_is_no_request_is_refused_with_a_4xx(served: Served, sent: bytes) -> None:
    with half_open(served, 1, sent) as [connection]:
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 4"), answer[:80]
    assert call(served, "GET", "/healthz").status == 200


def test_a_live_stream_goes_through_gunicorn_piece_by_piece(served: Served) -> None:
    job = submit(served).json()["id"]
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.request("GET", f"/api/v1/jobs/{job}/events", headers={**served.headers, "Accept": "text/event-stream"})
    stream = connection.getresponse()
    first = [stream.readline() for _ in range(4)]
    cancelled = call(served, "POST", f"/api/v1/jobs/{job}/cancel")
    rest = stream.read()
    connection.close()

    assert first[3].startswith(b"event: snapshot")
    assert cancelled.json()["state"] == "CANCELLED"
    assert b"event: cancelled" in rest
    assert rest.rstrip().endswith(b"event: end\ndata: {}")


class Load:
    """Clients that submit one request after the other, each with a key, and repeat what was not accepted."""

    def __init__(self, served: Served, *, workers: int) -> None:
        self.accepted: dict[str, str] = {}
        self.refused: list[tuple[int, bool]] = []
        self._served = served
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(worker,)) for worker in range(workers)]
        for thread in self._threads:
            thread.start()

    def _work(self, worker: int) -> None:
        number = 0
        while not self._is_over.is_set():
            key = f"{worker}-{number}"
            answer = submit(self._served, **{"Idempotency-Key": key})
            if answer.status == 202:
                self.accepted[key] = answer.json()["id"]
                number += 1
            else:
                self.refused.append((answer.status, "Retry-After" in answer.headers))

    def go_on(self) -> None:
        """Wait until more requests are accepted."""
        so_far = len(self.accepted)
        wait_until(lambda: len(self.accepted) > so_far + 8, what="requests are accepted")

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(30)


def all_jobs(served: Served) -> list[str]:
    found: list[str] = []
    cursor = ""
    while True:
        page = call(served, "GET", f"/api/v1/jobs?limit=100{cursor}").json()
        found += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"


def test_what_was_accepted_is_there_after_the_log_was_killed_under_load(tmp_path: Path) -> None:
    """503 with Retry-After while it is away; a client that repeats with its key gets one job for each."""
    with a_submit(tmp_path) as served:
        wait_until(lambda: call(served, "GET", "/readyz").status == 200, what="submit is ready")
        load = Load(served, workers=4)
        for kill in range(2):
            load.go_on()
            served.nats.kill()
            wait_until(lambda kill=kill: len(load.refused) > 4 * kill, what="requests are refused")
            served.nats.start()
        load.go_on()
        load.stop()
        listed = all_jobs(served)

    assert set(load.refused) == {(503, True)}
    assert set(load.accepted.values()) <= set(listed)
    # One more per client at most: written, and its answer lost with the server.
    assert len(listed) == len(set(listed)) <= len(load.accepted) + 4


def test_at_its_end_submit_lets_followers_go_at_once(tmp_path: Path) -> None:
    with a_submit(tmp_path) as served:
        wait_until(lambda: call(served, "GET", "/readyz").status == 200, what="submit is ready")
        job = submit(served).json()["id"]
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        headers = {**served.headers, "Accept": "text/event-stream", "Connection": "close"}
        connection.request("GET", f"/api/v1/jobs/{job}/events", headers=headers)
        stream = connection.getresponse()
        stream.readline()
        code = served.process.stop(timeout_s=20)
        rest = stream.read()
        connection.close()

    assert code == 0
    assert b"event: bye" in rest
