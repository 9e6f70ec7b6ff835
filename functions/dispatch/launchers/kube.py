"""The Kubernetes API: five verbs on JSON objects by their path. The only file with kubernetes.

Every call has a timeout and is made once: whoever called comes again. What the server refuses becomes an error of
contract/errors.py here, by what was seen of real servers: 403 is RBAC, a webhook, a quota or a namespace that ends; 500
is a webhook whose operator is down. Bodies are plain JSON: the client's typed calls map them by status, and lose some.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from engine.contract.errors import (
    AtCapacity,
    CineventError,
    Conflict,
    Invalid,
    JobFailed,
    NotFound,
    Problem,
    Unavailable,
)

# Connect, and answer: a page of many objects takes a busy server seconds.
_TIMEOUT_S = (3.0, 15.0)
_RETRY_AFTER_S = 5.0
# An installation that somebody has to put right.
_REPAIR_AFTER_S = 30.0
# Objects per answer: a page takes ten times its size while it is read.
_PAGE = 250
# A list whose continuation has expired is begun anew; one that expires so often never ends.
_LIST_TRIES = 3
# As many as a function has threads (gunicorn_conf.py).
_CONNECTIONS = 16
_MESSAGE_MAX_CHARACTERS = 1000
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

Json = dict[str, Any]
T = TypeVar("T")


class Exists(CineventError):
    """An object of this name is there already."""


class Kube:
    """One connection pool to the API server; for any thread."""

    def __init__(self, client: Any, *, namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    @classmethod
    def open(cls, *, namespace: str = "", kubeconfig: str = "") -> "Kube":
        """The API server that this pod belongs to, else that of a kubeconfig; empty: of the usual one.

        No call is made. Raises Invalid.
        """
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException

        configuration = client.Configuration()
        try:
            try:
                config.load_incluster_config(client_configuration=configuration)
            except ConfigException:
                config.load_kube_config(kubeconfig or None, client_configuration=configuration)
        except (ConfigException, OSError, ValueError) as error:
            message = f"no access to Kubernetes: {error}; run in a pod with a service account, or set KUBECONFIG"
            raise Invalid(Problem(pointer="KUBECONFIG", rule="kubernetes", message=message)) from error
        # The caller comes again; a try inside a try would only make it wait.
        configuration.retries = False
        configuration.connection_pool_maxsize = _CONNECTIONS
        return cls(client.ApiClient(configuration), namespace=namespace or _own_namespace())

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def create(self, collection: str, body: Mapping[str, Any]) -> Json:
        """The new object, as it is stored. Raises Exists, AtCapacity, Unavailable, JobFailed."""
        return self._call("POST", collection, body=body, query=[("fieldValidation", "Strict")])

    def get(self, path: str) -> Json:
        """The object. Raises NotFound, Unavailable."""
        return self._call("GET", path)

    def list_all(
        self, collection: str, *, labels: Mapping[str, str], keep: Callable[[Json], T], fields: str = ""
    ) -> list[T]:
        """What `keep` makes of every object with these labels and fields, page by page. Raises Unavailable."""
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        query = [("labelSelector", selector), ("fieldSelector", fields), ("limit", str(_PAGE))]
        for _ in range(_LIST_TRIES):
            try:
                return self._pages(collection, [pair for pair in query if pair[1]], keep)
            except _Expired:
                continue
        raise Unavailable(f"the list of {collection} expires before it ends", retry_after_s=_RETRY_AFTER_S)

    def delete(self, path: str, *, uid: str) -> None:
        """Delete the object of this uid and, in the background, what it owns.

        Raises NotFound, Conflict, Unavailable.
        """
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        self._call("DELETE", path, body=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Json:
        """The object after a JSON merge patch. Raises NotFound, Conflict, Unavailable, JobFailed."""
        return self._call("PATCH", path, body=body, content_type="application/merge-patch+json")

    def _pages(self, collection: str, query: list[tuple[str, str]], keep: Callable[[Json], T]) -> list[T]:
        found: list[T] = []
        token = ""
        while True:
            page = self._call("GET", collection, query=[*query, *([("continue", token)] if token else [])])
            found += map(keep, page.get("items") or ())
            token = page.get("metadata", {}).get("continue") or ""
            if not token:
                return found

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: list[tuple[str, str]] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json", "Content-Type": content_type}
        # Without the body: the client would walk through all of it for types of its own, of which it has none.
        method, url, headers, *_ = self._client.param_serialize(
            method, path, query_params=query or [], header_params=headers, auth_settings=["BearerToken"]
        )
        try:
            answer = self._client.call_api(method, url, headers, body, _request_timeout=_TIMEOUT_S)
            text = answer.read()
        except HTTPError as error:
            message = f"the Kubernetes API does not answer: {error}"
            raise Unavailable(message, retry_after_s=_RETRY_AFTER_S) from error
        said = _said(text)
        if not 200 <= answer.status < 300:
            raise refusal(
                answer.status,
                said,
                retry_after=answer.headers.get("Retry-After"),
                path=path,
                is_create=method == "POST",
            )
        return said


class _Expired(CineventError):
    """The continuation of a list is too old."""


def refusal(
    status: int, said: Mapping[str, Any], *, path: str, is_create: bool = False, retry_after: str | None = None
) -> CineventError:
    """What an answer other than 2xx means to whoever asked; `said` is the Status object in it."""
    message = str(said.get("message") or f"HTTP {status}")[:_MESSAGE_MAX_CHARACTERS]
    if special := _SPECIAL.get((status, str(said.get("reason", "")))):
        return special(message)
    if status == 404 and path.endswith(f"/{said.get('details', {}).get('name')}"):
        return NotFound(message)
    if is_create and (status in (400, 422) or (status == 403 and "admission webhook" in message)):
        hint = "" if status == 403 else "; correct CINEVENT_RUN_OVERLAY"
        return JobFailed("launch_refused", f"the cluster refuses the run: {message}{hint}", retryable=False)
    if status == 403 and "exceeded quota" in message:
        return AtCapacity(f"the namespace's quota has no room: {message}", retry_after_s=_REPAIR_AFTER_S)
    # 401, 403, 404: no access, no such kind, no such namespace. Somebody has to put it right, and jobs wait for it.
    usual_s = _REPAIR_AFTER_S if status in (401, 403, 404) else _RETRY_AFTER_S
    after_s = float(retry_after) if retry_after and retry_after.isdecimal() else usual_s
    return Unavailable(f"Kubernetes answers {status} on {path}: {message}", retry_after_s=after_s)


_SPECIAL: dict[tuple[int, str], Callable[[str], CineventError]] = {
    (409, "AlreadyExists"): Exists,
    (409, "Conflict"): Conflict,
    (410, "Expired"): _Expired,
    (410, "Gone"): _Expired,
}


def _said(text: bytes) -> Json:
    try:
        said = json.loads(text)
    except ValueError:
        # A proxy in between, or a path that no server knows.
        return {"message": text[:200].decode(errors="replace").strip()}
    return said if isinstance(said, dict) else {}


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.exists() else "default"
