"""A small Kubernetes API server over real HTTP: what the real one answers, of the verbs and objects that dispatch uses.

It stores what it is given, checks no schema, and runs nothing: pods and statuses are made by whoever plays operator and
kubelet (tests/kubelet.py). `python -m tests.kube_api FILE` serves until it is killed and writes its address to FILE.
"""

import json
import re
import sys
import threading
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Json = dict[str, Any]

_PATH = re.compile(
    r"(?P<collection>/(?:api/v1|apis/[^/]+/[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+))"
    r"(?:/(?P<name>[^/]+)(?:/(?P<sub>status))?)?"
)


@dataclass(frozen=True)
class Call:
    """One request, as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Json

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Said:
    """An answer."""

    status: int
    body: Json
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    """An answer that is a Status object."""

    def __init__(self, status: int, reason: str, message: str, *, name: str = "", **headers: str) -> None:
        super().__init__(message)
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason}
        details = {"details": {"name": name}} if name else {}
        self.said = Said(status, {**body, **details, "code": status}, headers)


class KubeApi:
    """A server on a free port of this machine; `url` is its address.

    `before` hears every call and may refuse it (raise Refused), or take its time; `after` hears it once it is done and
    before it is answered.
    """

    def __init__(self) -> None:
        self.items: dict[str, Json] = {}
        self.calls: list[Call] = []
        self.before: Callable[[Call], None] = lambda _: None
        self.after: Callable[[Call], None] = lambda _: None
        self.num_expired = 0
        """So many continuations of lists are answered with 410."""
        self.created: dict[str, float] = {}
        """When each object was made, by name; with the number of calls this is what GET /stats answers."""
        self.has_kubelet = False
        """Pods that are deleted stay until their kubelet confirms it."""
        self._version = 0
        self._lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, path: Path) -> Path:
        """A file for KUBECONFIG."""
        cluster = {"name": "test", "cluster": {"server": self.url}}
        context = {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "contexts": [context],
            "users": [{"name": "test", "user": {}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))
        return path

    def of(self, plural: str) -> list[Json]:
        """All objects of a collection, the oldest first."""
        with self._lock:
            return [item for path, item in list(self.items.items()) if path.split("/")[-2] == plural]

    def calls_of(self, *methods: str) -> list[str]:
        """The calls with these methods, as text."""
        return [str(call) for call in self.calls if call.method in methods]

    def answer(self, call: Call) -> Said:
        """The answer to a call. Raises Refused."""
        with self._lock:
            self.calls.append(call)
        self.before(call)
        with self._lock:
            said = self._answer(call)
        self.after(call)
        return said

    def _answer(self, call: Call) -> Said:
        match = _PATH.fullmatch(call.path)
        if match is None:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        verb = _VERBS.get((call.method, match["name"] is not None))
        if verb is None:
            raise Refused(405, "MethodNotAllowed", f"{call} is not allowed")
        return verb(self, call, match)

    def _create(self, call: Call, match: re.Match[str]) -> Said:
        name = call.body["metadata"]["name"]
        path = f"{match['collection']}/{name}"
        if path in self.items:
            deleting = "object is being deleted: " if self.items[path]["metadata"].get("deletionTimestamp") else ""
            raise Refused(409, "AlreadyExists", f'{deleting}{match["plural"]} "{name}" already exists', name=name)
        item = json.loads(json.dumps(call.body))
        item.pop("status", None)
        item["metadata"] |= {
            "namespace": match["namespace"],
            "uid": str(uuid.uuid4()),
            "creationTimestamp": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "generation": 1,
        }
        self.items[path] = item
        self.created[name] = time.time()
        return Said(201, self._stamped(item))

    def _get(self, _call: Call, match: re.Match[str]) -> Said:
        return Said(200, self._found(match))

    def _list(self, call: Call, match: re.Match[str]) -> Said:
        labels, fields = call.query.get("labelSelector", ""), call.query.get("fieldSelector", "")
        prefix = f"{match['collection']}/"
        found = [
            item
            for path, item in self.items.items()
            if path.startswith(prefix)
            and _selected(item["metadata"].get("labels", {}).get, labels)
            and _selected(lambda name, item=item: _at(item, name), fields)
        ]
        limit = int(call.query.get("limit", "0")) or len(found)
        start = int(b64decode(call.query["continue"])) if "continue" in call.query else 0
        if start and self.num_expired:
            self.num_expired -= 1
            raise Refused(410, "Expired", "The provided continue parameter is too old to display a consistent list")
        end = start + limit
        more = {"continue": b64encode(str(end).encode()).decode()} if end < len(found) else {}
        metadata = {"resourceVersion": str(self._version), **more}
        return Said(200, {"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": found[start:end]})

    def _patch(self, call: Call, match: re.Match[str]) -> Said:
        item = self._found(match)
        uid = call.body.get("metadata", {}).get("uid", item["metadata"]["uid"])
        if uid != item["metadata"]["uid"]:
            raise Refused(409, "Conflict", f"Precondition failed: UID in precondition: {uid}", name=match["name"])
        if match["sub"]:
            item["status"] = _merged(item.get("status", {}), call.body.get("status", {}))
        else:
            patch = {name: value for name, value in call.body.items() if name != "status"}
            item.update(_merged(item, patch))
        return Said(200, self._stamped(item))

    def _delete(self, call: Call, match: re.Match[str]) -> Said:
        item = self._found(match)
        uid = call.body.get("preconditions", {}).get("uid", item["metadata"]["uid"])
        if uid != item["metadata"]["uid"]:
            raise Refused(409, "Conflict", f"Precondition failed: UID in precondition: {uid}", name=match["name"])
        if item["metadata"].get("finalizers") or (self._is_pod(match) and self.has_kubelet and not _is_now(call.body)):
            item["metadata"]["deletionTimestamp"] = _now()
            return Said(200, self._stamped(item))
        self._remove(call.path)
        return Said(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _remove(self, path: str) -> None:
        uid = self.items.pop(path)["metadata"]["uid"]
        self._version += 1
        for owned, item in list(self.items.items()):
            if uid in [owner["uid"] for owner in item["metadata"].get("ownerReferences", ())]:
                if "/pods/" in owned and self.has_kubelet:
                    item["metadata"].setdefault("deletionTimestamp", _now())
                else:
                    self._remove(owned)

    def _is_pod(self, match: re.Match[str]) -> bool:
        return match["plural"] == "pods"

    def _found(self, match: re.Match[str]) -> Json:
        item = self.items.get(f"{match['collection']}/{match['name']}")
        if item is None:
            raise Refused(404, "NotFound", f'{match["plural"]} "{match["name"]}" not found', name=match["name"])
        return item

    def _stamped(self, item: Json) -> Json:
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        return item


_VERBS: dict[tuple[str, bool], Callable[[KubeApi, Call, re.Match[str]], Said]] = {
    ("POST", False): KubeApi._create,
    ("GET", True): KubeApi._get,
    ("GET", False): KubeApi._list,
    ("PATCH", True): KubeApi._patch,
    ("DELETE", True): KubeApi._delete,
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def _handler(api: KubeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
            address = urlsplit(self.path)
            body = json.loads(raw) if raw else {}
            if address.path == "/stats":
                self._write(Said(200, {"calls": len(api.calls), "created": api.created}))
                return
            call = Call(self.command, address.path, dict(parse_qsl(address.query)), body or {})
            try:
                said = api.answer(call)
            except Refused as refused:
                said = refused.said
            self._write(said)

        def _write(self, said: Said) -> None:
            with api._lock:
                text = json.dumps(said.body).encode()
            head = [f"HTTP/1.1 {said.status} -", "Content-Type: application/json", f"Content-Length: {len(text)}"]
            head += [f"{name}: {value}" for name, value in said.headers.items()]
            # One write: two would wait for each other's acknowledgement.
            self.wfile.write("\r\n".join(head).encode() + b"\r\n\r\n" + text)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815  # the names are http.server's

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def _selected(value_of: Callable[[str], Any], selector: str) -> bool:
    for part in filter(None, selector.split(",")):
        name, sign, wanted = re.fullmatch(r"([^!=]+)(!=|=)(.*)", part).groups()  # type: ignore[union-attr]
        if (str(value_of(name) or "") == wanted) != (sign == "="):
            return False
    return True


def _at(item: Json, path: str) -> Any:
    for name in path.split("."):
        item = item.get(name, {})
    return item


def _merged(base: Any, patch: Json) -> Json:
    merged = dict(base) if isinstance(base, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value) if isinstance(value, dict) else value
    return merged


def _is_now(body: Json) -> bool:
    return body.get("gracePeriodSeconds") == 0


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


if __name__ == "__main__":
    server = KubeApi()
    Path(sys.argv[1]).write_text(server.url)
    while True:
        time.sleep(3600)
