"""A client of submit over HTTP, as any other program would be one. It knows the API, nothing behind it."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import urllib3

from engine.contract.errors import CineventError
from engine.contract.upload import EXTENSIONS, UPLOAD_MAX_BYTES, type_of

_TIMEOUT = urllib3.Timeout(connect=5, read=30)
# submit answers with a link where the store has links.
_FOLLOW = urllib3.Retry(total=3, connect=0, read=0, status=0, other=0, redirect=3)


class Refused(CineventError):
    """submit answered, but not with what was asked for; the text is its own."""


class Client:
    """Calls to one submit."""

    def __init__(self, url: str, *, key: str = "") -> None:
        self._url = url.rstrip("/")
        self._http = urllib3.PoolManager(retries=False, timeout=_TIMEOUT)
        self._credentials = {"Authorization": f"Bearer {key}"} if key else {}

    def close(self) -> None:
        """End its connections."""
        self._http.clear()

    def submit(self, request: Mapping[str, Any], *, key: str | None) -> dict[str, Any]:
        """Accept a request; returns the job. The same key never makes a second job."""
        headers = {"Idempotency-Key": key} if key else {}
        return self._call("POST", "/api/v1/generate", json=request, headers=headers)

    def upload(self, picture: Path) -> str:
        """Send a PNG, JPEG or WebP; returns the name for `input.image`. The same bytes have the same name."""
        try:
            with picture.open("rb") as file:
                body = file.read(UPLOAD_MAX_BYTES + 1)
        except OSError as error:
            raise Refused(f"cannot read {picture}: {error.strerror}") from error
        content_type = type_of(body)
        if content_type is None or len(body) > UPLOAD_MAX_BYTES:
            raise Refused(f"{picture} is no PNG, JPEG or WebP of at most {UPLOAD_MAX_BYTES // 2**20} MiB")
        name = f"{hashlib.sha256(body).hexdigest()}.{EXTENSIONS[content_type]}"
        self._call("PUT", f"/api/v1/uploads/{name}", body=body, headers={"Content-Type": content_type})
        return name

    def get(self, job: str) -> dict[str, Any]:
        """The job as it stands now."""
        return self._call("GET", f"/api/v1/jobs/{job}")

    def page(self, *, limit: int, cursor: str | None) -> dict[str, Any]:
        """Jobs, the newest first: {"jobs": [...], "next_cursor": ...}."""
        return self._call("GET", "/api/v1/jobs", fields={"limit": str(limit), **({"cursor": cursor} if cursor else {})})

    def cancel(self, job: str) -> dict[str, Any]:
        """Ask to stop the job; returns it."""
        return self._call("POST", f"/api/v1/jobs/{job}/cancel")

    def retry(self, job: str) -> dict[str, Any]:
        """Ask again for what a job was to make; returns the new job."""
        return self._call("POST", f"/api/v1/jobs/{job}/retry")

    def delete(self, job: str) -> None:
        """Erase a job that has ended."""
        answer = self._send("DELETE", f"/api/v1/jobs/{job}")
        if answer.status != 204:
            raise Refused(_reason(answer.status, answer.data))

    def video(self, job: str, target: Path) -> int:
        """Write the finished video to `target`, whole or not at all; returns its size in bytes."""
        part = target.with_name(f".{target.name}.part")
        try:
            with (
                self._send("GET", f"/api/v1/jobs/{job}/video", retries=_FOLLOW, preload_content=False) as answer,
                part.open("wb") as file,
            ):
                if answer.status != 200:
                    raise Refused(_reason(answer.status, answer.read()))
                shutil.copyfileobj(answer, file)
            part.replace(target)
        except OSError as error:
            raise Refused(f"cannot write {target}: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)
        return target.stat().st_size

    def deliveries(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Deliveries, the newest first: {"deliveries": [...], "next_cursor": ...}."""
        return self._call("GET", "/api/v1/deliveries", fields=dict(query))

    def deliveries_of(self, job: str) -> dict[str, Any]:
        """The deliveries of a job: {"deliveries": [...]}."""
        return self._call("GET", f"/api/v1/jobs/{job}/deliveries")

    def delivery(self, delivery: str) -> dict[str, Any]:
        """One delivery with its attempts."""
        return self._call("GET", f"/api/v1/deliveries/{delivery}")

    def replay(self, delivery: str) -> dict[str, Any]:
        """Send a delivery again."""
        return self._call("POST", f"/api/v1/deliveries/{delivery}/replay")

    def endpoints(self) -> dict[str, Any]:
        """The standing endpoints: {"endpoints": [...]}."""
        return self._call("GET", "/api/v1/endpoints")

    def on_endpoint(self, name: str, act: str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """`recover`, `test` or `enable` an endpoint."""
        return self._call("POST", f"/api/v1/endpoints/{name}/{act}", json=data or {})

    def _call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        answer = self._send(method, path, **more)
        if not 200 <= answer.status < 300:
            raise Refused(_reason(answer.status, answer.data))
        found: dict[str, Any] = answer.json()
        return found

    def _send(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> urllib3.BaseHTTPResponse:
        own = {**self._credentials, **(headers or {})}
        try:
            return self._http.request(method, f"{self._url}{path}", headers=own, **more)
        except urllib3.exceptions.HTTPError as error:
            raise Refused(f"{self._url} does not answer: {_short(error)}") from error


def _reason(status: int, body: bytes) -> str:
    try:
        problem = json.loads(body)
        return f"{problem['detail']} ({status} {problem['code']})"
    except (ValueError, KeyError, TypeError):
        return f"the answer was {status}, and not from submit: is the address right?"


def _short(error: Exception) -> str:
    return str(error).rsplit(": ", maxsplit=1)[-1]
