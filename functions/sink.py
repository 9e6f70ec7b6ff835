"""The sink: the function that a source feeds, over HTTP. Knows Knative's variables and nothing of NATS."""

import json
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from engine.contract.codec import batch, encode, encode_binary
from engine.contract.errors import Invalid, Problem
from functions.delivery import Answer, Letter

# An override of these would make it another event.
_ATTRIBUTES = frozenset(
    {"specversion", "id", "source", "type", "time", "subject", "dataschema", "datacontenttype", "data"}
)
# Enough to say in a dead letter what went wrong; the rest of an answer is never read.
_ANSWER_MAX_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where events go, and how."""

    url: str
    extensions: Mapping[str, str] = field(default_factory=dict)
    """Set on every event, over its own."""
    ca_certs: str = ""
    """PEM; trusted beside the system's."""
    timeout_s: float = 60.0
    """From connecting to the end of the answer; a cold start of the function is inside."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """The target that K_SINK, K_CE_OVERRIDES and K_CA_CERTS name. Raises Invalid."""
        return cls(
            url=_url(environ.get("K_SINK", "")),
            extensions=_overrides(environ.get("K_CE_OVERRIDES") or "{}"),
            ca_certs=_certs(environ.get("K_CA_CERTS", "")),
        )


class Sink:
    """Posts events to a target; to be made inside a running event loop."""

    def __init__(self, target: Target) -> None:
        tls = ssl.create_default_context()
        if target.ca_certs:
            tls.load_verify_locations(cadata=target.ca_certs)
        self._target = target
        self._session = aiohttp.ClientSession(
            # No limit: the source bounds how many posts there are at a time.
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),
            timeout=aiohttp.ClientTimeout(total=target.timeout_s, connect=5.0),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def post(self, letters: Sequence[Letter]) -> Answer:
        """Post one event in binary mode, several as a batch. A status counts even if the body after it never ends."""
        headers, body = self._written(letters)
        status, retry_after, text = 0, None, b""
        try:
            async with self._session.post(
                self._target.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status, retry_after = response.status, response.headers.get("Retry-After")
                while len(text) < _ANSWER_MAX_BYTES and not response.content.at_eof():
                    text += await response.content.read(_ANSWER_MAX_BYTES - len(text))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            text = text or f"{type(error).__name__} {error}".encode()
        return Answer(status=status, retry_after=retry_after, text=text.decode(errors="replace"))

    def _written(self, letters: Sequence[Letter]) -> tuple[dict[str, str], bytes]:
        more = self._target.extensions
        if len(letters) > 1 and not more:
            # As they stand in the log: thousands a second are not worth writing anew.
            return batch(letter.body for letter in letters)
        events = [replace(each.event, extensions={**each.event.extensions, **more}) for each in letters]
        return encode_binary(events[0]) if len(events) == 1 else batch(encode(event)[1] for event in events)


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _invalid("K_SINK", f"{text!r} is not where events can go; allowed: an http or https address")
    return text


def _overrides(text: str) -> dict[str, str]:
    try:
        overrides: Any = json.loads(text)
        extensions = dict(overrides.get("extensions") or {})
        valid = all(
            re.fullmatch("[a-z0-9]{1,20}", name) and name not in _ATTRIBUTES and value.isprintable()
            for name, value in extensions.items()
        )
    except (ValueError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise _invalid("K_CE_OVERRIDES", f'{text[:80]!r} is not {{"extensions": {{"name": "value"}}}}')
    return extensions


def _certs(pem: str) -> str:
    if pem:
        try:
            ssl.create_default_context(cadata=pem)
        except (ssl.SSLError, ValueError) as error:
            raise _invalid("K_CA_CERTS", f"no PEM certificates: {error}") from error
    return pem


def _invalid(variable: str, message: str) -> Invalid:
    return Invalid(Problem(pointer=variable, rule="value", message=message))
