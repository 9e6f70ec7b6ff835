"""Endpoints: where webhooks go, and what each wants. Pure; the file of the standing ones is read in functions/.

A request may name an address for its own job; standing endpoints hear of all jobs of a tenant. Both are an Endpoint to
everything that follows.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs

from engine.contract.errors import Invalid, Problem
from engine.contract.job import is_tenant
from engine.contract.request import WEBHOOK_CHOICES, WEBHOOK_EVENTS
from engine.contract.rules import pointer_to, schema_problems, url_problems
from engine.contract.signature import read_secret

# Posts to one endpoint at a time: what a small receiver bears, and enough for hundreds of deliveries a second.
CONCURRENCY = 10
_NAME = r"^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$"
_URL_PREFIX = "url-"
# Those that say what a message is and how it travels are Cinevent's.
_RESERVED_HEADERS = re.compile(
    r"webhook-.*|ce-.*|content-.*|host|connection|keep-alive|transfer-encoding|te|trailer|upgrade|expect|user-agent"
    r"|proxy-.*",
    re.IGNORECASE,
)

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["endpoints"],
    "properties": {
        "endpoints": {
            "type": "array",
            "maxItems": 1000,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "url", "secrets"],
                "properties": {
                    "name": {"type": "string", "pattern": _NAME},
                    "tenant": {"type": "string"},
                    "url": {"type": "string", "minLength": 1, "maxLength": 2048},
                    "events": {
                        "type": "array",
                        "minItems": 1,
                        "uniqueItems": True,
                        "items": {"enum": list(WEBHOOK_CHOICES)},
                    },
                    "format": {"enum": ["structured", "binary"]},
                    "secrets": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "string"}},
                    "rate_per_minute": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
                    "concurrency": {"type": "integer", "minimum": 1, "maximum": 100},
                    "headers": {
                        "type": "object",
                        "maxProperties": 16,
                        "propertyNames": {"pattern": r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$"},
                        "additionalProperties": {"type": "string", "maxLength": 1024, "pattern": r"^[\x20-\x7e]*$"},
                    },
                    "enabled": {"type": "boolean"},
                    "handshake": {"type": "boolean"},
                },
            },
        }
    },
}
_VALIDATOR = jsonschema_rs.Draft202012Validator(_SCHEMA)


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """One receiver of webhooks."""

    name: str
    tenant: str
    url: str
    events: tuple[str, ...] = WEBHOOK_EVENTS
    format: str = "structured"
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    """Of its secrets: one, or the old and the new one while they are changed."""
    rate_per_minute: int = 0
    """0: as fast as it answers."""
    concurrency: int = CONCURRENCY
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    enabled: bool = True
    handshake: bool = False
    """Whether it is asked for its consent first, as CloudEvents' webhook specification says."""

    @property
    def is_standing(self) -> bool:
        """Whether it comes from the file; the others come from requests."""
        return not self.name.startswith(_URL_PREFIX)


def of_request(url: str, *, tenant: str, keys: tuple[bytes, ...]) -> Endpoint:
    """The endpoint of an address that a request names: the same address is the same endpoint."""
    digest = hashlib.sha256(url.encode()).digest()
    name = _URL_PREFIX + base64.b32encode(digest).decode().lower()[:20]
    return Endpoint(name=name, tenant=tenant, url=url, keys=keys)


def parse_endpoints(data: Any, *, tenant: str, read: Callable[[str], str]) -> dict[tuple[str, str], Endpoint]:
    """Standing endpoints by tenant and name, from the file's content; `tenant` is that of those that name none.

    `read` gives the text of a secret that is written as `file:PATH`, or raises OSError. Raises Invalid with one Problem
    per broken rule; no secret is in any of them.
    """
    problems = list(schema_problems(_VALIDATOR, data))
    if problems:
        # A message about a secret could repeat it.
        raise Invalid(*(_discreet(problem) for problem in problems))
    found: dict[tuple[str, str], Endpoint] = {}
    for index, row in enumerate(data["endpoints"]):
        where = f"/endpoints/{index}"
        broken = list(_problems(row, where))
        keys = tuple(_keys(row["secrets"], f"{where}/secrets", read, broken))
        problems += broken
        if not broken:
            endpoint = _endpoint(row, tenant=tenant, keys=keys)
            if (endpoint.tenant, endpoint.name) in found:
                message = f"there are two endpoints {endpoint.name!r}; give each a name of its own"
                problems.append(Problem(pointer=f"{where}/name", rule="unique", message=message))
            found[endpoint.tenant, endpoint.name] = endpoint
    if problems:
        raise Invalid(*problems)
    return found


def _endpoint(row: Mapping[str, Any], *, tenant: str, keys: tuple[bytes, ...]) -> Endpoint:
    plain = ("name", "url", "format", "rate_per_minute", "concurrency", "headers", "enabled", "handshake")
    return Endpoint(
        **{name: row[name] for name in plain if name in row},
        tenant=row.get("tenant", tenant),
        events=tuple(row.get("events", WEBHOOK_EVENTS)),
        keys=keys,
    )


def _problems(row: Mapping[str, Any], where: str) -> Iterator[Problem]:
    yield from url_problems(row["url"], f"{where}/url")
    if row["name"].startswith(_URL_PREFIX):
        message = f"names of addresses in requests begin with {_URL_PREFIX!r}; choose another name"
        yield Problem(pointer=f"{where}/name", rule="reserved", message=message)
    if not is_tenant(row.get("tenant", "default")):
        message = f"{row['tenant']!r} cannot name a tenant; allowed: 1 to 32 of a-z, 0-9 and -, no reserved word"
        yield Problem(pointer=f"{where}/tenant", rule="tenant", message=message)
    for name in row.get("headers", {}):
        if _RESERVED_HEADERS.fullmatch(name):
            message = f"the header {name!r} is Cinevent's own; remove it"
            yield Problem(pointer=f"{where}{pointer_to('headers', name)}", rule="reserved", message=message)


def _keys(secrets: list[str], where: str, read: Callable[[str], str], broken: list[Problem]) -> Iterator[bytes]:
    for index, text in enumerate(secrets):
        pointer = f"{where}/{index}"
        try:
            yield read_secret(read(text[5:]).strip() if text.startswith("file:") else text, pointer)
        except Invalid as error:
            broken += error.problems
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            message = f"cannot read {text[5:]!r}: {reason}"
            broken.append(Problem(pointer=pointer, rule="file", message=message))


def _discreet(problem: Problem) -> Problem:
    if "/secrets" not in problem.pointer:
        return problem
    message = "allowed: one or two texts, whsec_ and base64, or file: and a path"
    return Problem(pointer=problem.pointer, rule=problem.rule, message=message)
