"""Servers for what weights come from: a relay before an S3 service that counts and disturbs, and a small hub."""

import hashlib
import http.client
import http.server
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    range: str
    """Of the bytes wanted; empty for all."""


Answer = tuple[int, Mapping[str, str], bytes]


class Server:
    """HTTP on a free port; `answer` says what each request gets, and may wait. A body cut short ends the connection."""

    def __init__(self, answer: Callable[[Asked, Mapping[str, str], bytes], Answer]) -> None:
        self.asked: list[Asked] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.asked, answer))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Relay:
    """Passes requests on to `target`. `before` is called with each read of a part; `change` may change what it gets."""

    def __init__(self, target: str) -> None:
        self.before: Callable[[Asked], object] = lambda _: None
        self.change: Callable[[Asked, bytes], bytes] = lambda _, body: body
        self._address = urlsplit(target).netloc
        self._server = Server(self._pass_on)
        self.url = self._server.url

    @property
    def parts(self) -> list[Asked]:
        """The reads of parts of objects, in the order in which they came."""
        return [asked for asked in self._server.asked if asked.range]

    def close(self) -> None:
        self._server.close()

    def _pass_on(self, asked: Asked, headers: Mapping[str, str], body: bytes) -> Answer:
        if asked.range:
            self.before(asked)
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.request(asked.method, asked.path, body=body, headers=dict(headers))
            got = connection.getresponse()
            data = got.read()
            sent = self.change(asked, data) if asked.range and got.status == 206 else data
            return got.status, dict(got.getheaders()), sent
        finally:
            connection.close()


class Hub:
    """One repository, as the Hugging Face hub serves it; its large files are `lfs`. `status` is that of all answers."""

    def __init__(self, repo: str, files: Mapping[str, bytes], *, lfs: set[str]) -> None:
        self.status = 200
        self.commit = "c" * 40
        self.served = dict(files)
        """What is sent, if it is to be something else than what is promised."""
        self._repo = repo
        self._files = files
        self._lfs = lfs
        self._server = Server(self._answer)
        self.url = self._server.url

    @property
    def downloads(self) -> list[str]:
        """The files that were read, not only asked about."""
        return [
            asked.path.rpartition("/")[2]
            for asked in self._server.asked
            if asked.method == "GET" and "/resolve/" in asked.path
        ]

    def close(self) -> None:
        self._server.close()

    def _answer(self, asked: Asked, _headers: Mapping[str, str], _body: bytes) -> Answer:
        path = urlsplit(asked.path).path
        model = f"/api/models/{self._repo}"
        if self.status != 200:
            return self.status, {}, b"{}"
        if path.startswith(f"{model}/revision/") or path == model:
            return _json({"id": self._repo, "sha": self.commit, "siblings": [], "tags": [], "private": False})
        if path.startswith(f"{model}/tree/{self.commit}"):
            return _json([self._entry(name) for name in self._files])
        name = path.removeprefix(f"/{self._repo}/resolve/{self.commit}/")
        if name not in self._files:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{self._entry(name)["oid"]}"', "Accept-Ranges": "bytes"}
        if name in self._lfs:
            headers["X-Linked-ETag"] = f'"{_sha256(self._files[name])}"'
            headers["X-Linked-Size"] = str(len(self._files[name]))
        return 200, headers, self.served[name]

    def _entry(self, name: str) -> dict[str, object]:
        data = self._files[name]
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        lfs = {"lfs": {"oid": _sha256(data), "size": len(data), "pointerSize": 130}} if name in self._lfs else {}
        return {"type": "file", "path": name, "size": len(data), "oid": oid, **lfs}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json(value: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _handler(
    asked: list[Asked], answer: Callable[[Asked, Mapping[str, str], bytes], Answer]
) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Asked(self.command, self.path, self.headers.get("Range", ""))
            asked.append(request)
            status, headers, data = answer(request, self.headers, body)
            lengths = {name.lower(): value for name, value in headers.items()}
            promised = int(lengths.pop("content-length", len(data)))
            self.send_response(status)
            for name, value in lengths.items():
                if name not in ("connection", "transfer-encoding", "server", "date"):
                    self.send_header(name, value)
            self.send_header("content-length", str(promised))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
                self.close_connection = len(data) < promised

        do_GET = do_HEAD = handle_any  # noqa: N815  (http.server's names)

        def handle(self) -> None:
            # A client that was killed is part of the test.
            try:
                super().handle()
            except (ConnectionError, TimeoutError):
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    return Handler
