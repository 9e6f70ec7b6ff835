"""One row per route: what it takes and answers, who may call it. app.py serves the rows, openapi.py describes them.

A view is `view(call, **parts of the path) -> Response`. It knows the caller; it never reads credentials itself.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flask import Response
from werkzeug.exceptions import HTTPException

from engine.contract.errors import CineventError, NotFound
from engine.contract.job import Job, is_id
from functions.deps import Deps
from functions.submit.counts import Counter
from functions.submit.mail import Mail

# With the answer itself, under the second in which a caller wants to know that the log is away.
DEADLINE_S = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks: the tenant is the credential's, never the request's."""

    tenant: str
    name: str
    """Of the key or the subject of the token, for the log."""
    scopes: frozenset[str]


NOBODY = Caller(tenant="", name="nobody", scopes=frozenset())
"""Who asks for what everybody may see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A page or a schema."""

    media_type: str
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One request to a route: the clients to answer it with, and who asks."""

    deps: Deps
    caller: Caller
    places: threading.BoundedSemaphore
    """One per client that may follow a job at one time."""
    mail: Mail
    """Deliveries, endpoints, and where webhooks may go."""
    counter: Counter
    """How many jobs a tenant has."""
    documents: Callable[[], Mapping[str, Document]]
    """The documents about this API, by name."""
    is_stopping: Callable[[], bool]
    """Whether this process is told to end: answers that take long should."""

    @property
    def tenant(self) -> str:
        """The caller's; the only tenant that this call may see."""
        return self.caller.tenant

    @property
    def base_url(self) -> str:
        """What links start with."""
        return self.deps.settings.public_url

    def find(self, job: str) -> Job:
        """The caller's job of this id. Raises NotFound, for the jobs of others as well."""
        if not is_id(job):
            raise NotFound(f"there is no job {job[:40]}")
        return self.deps.history.get(self.tenant, job, deadline_s=DEADLINE_S)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One status that a route answers with: what it means, its JSON Schema or media type, its own headers."""

    text: str
    schema: Mapping[str, Any] | None = None
    media_types: tuple[str, ...] = ("application/json",)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """A query parameter, a header, or a part of the path."""

    name: str
    text: str
    schema: Mapping[str, Any]
    place: str = "query"


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """A method of a path. `scope`: what a caller must be allowed to do; None: nobody has to say who they are."""

    method: str
    path: str
    view: Callable[..., Response]
    text: str
    scope: str | None
    group: str
    answers: Mapping[int, Answer]
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Mapping[str, Any]] | None = None
    """JSON Schemas of the body by media type."""
    on_error: Callable[[CineventError | HTTPException], Response] | None = None
    """How its errors are told, where that is another form than everywhere else."""
    is_streaming: bool = False
    """Its answer may take as long as a job."""


def ref(name: str) -> dict[str, str]:
    """A schema of openapi.py's by its name."""
    return {"$ref": f"#/components/schemas/{name}"}
