"""The real servers that tests talk to: a nats-server, child processes, a sink that records what it is sent.

Each is started on a free port in a temporary directory and ended by the fixture that started it.
"""

import contextlib
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], object], *, timeout_s: float = 30.0, what: str = "") -> None:
    """Return as soon as `holds()` is true; fail the test after the time-out."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what or holds}"
        time.sleep(0.01)


def accepts(port: int) -> bool:
    """Whether somebody listens on this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class NatsServer:
    """A nats-server with JetStream; `kill` is a power loss of the process, `start` brings it back with its data."""

    def __init__(self, directory: Path, *, more: str = "") -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._config = directory / "nats.conf"
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{directory / "jetstream"}", sync_interval: always }}\n'
            f"{more}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = Path(sysconfig.get_path("scripts")) / "nats-server"
        assert binary.exists(), "nats-server is missing: make setup installs it"
        self._process = subprocess.Popen(
            [binary, "-c", self._config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: accepts(self.port), what="nats-server listens")

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def kill(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@dataclass
class Child:
    """A child process with its output in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, *, timeout_s: float = 30.0) -> int:
        """SIGTERM, then the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout_s)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def child(arguments: list[str], *, env: Mapping[str, str], log: Path) -> Iterator[Child]:
    """A child process that is gone afterwards."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            arguments, env={**os.environ, **env}, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield Child(process=process, log=log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True)
class Received:
    """One request that a sink got."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # With the default of five, a burst of connections is made a second late.
    request_queue_size = 128


class Sink:
    """An HTTP server that records every POST and answers what `answer(request)` says: a status, and headers."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answer: Callable[[Received], tuple[int, dict[str, str]]] = lambda _: (204, {})
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        sink = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Received(path=self.path, headers=headers, body=body, at=time.monotonic())
                sink.received.append(request)
                status, extra = sink.answer(request)
                self.send_response(status)
                for name, value in {"content-length": "0", **extra}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        return Handler


def remove(directory: Path) -> None:
    """Delete a folder, as a machine that lost its disk would."""
    shutil.rmtree(directory, ignore_errors=True)
