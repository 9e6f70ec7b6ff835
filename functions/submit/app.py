"""submit: takes requests over HTTP and reads jobs. The edge: one row per route, who may call it, and the clients.

Each group of routes has a file of its own and says in ROUTES what it takes and answers; openapi.py makes the document
of the same rows.
"""

import os
import threading
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from engine.adapters.deliveries import Deliveries
from engine.contract.errors import CineventError
from engine.contract.settings import Settings
from functions.deps import Deps, open_deps
from functions.submit import accept, artifacts, catalog, change, documents, follow, jobs, uploads, videos, webhooks
from functions.submit.counts import Counter
from functions.submit.gate import Gate
from functions.submit.mail import Mail
from functions.submit.route import NOBODY, Call, Document, Route
from functions.web import log_to_stderr, make_app

ROUTES: tuple[Route, ...] = (
    *accept.ROUTES,
    *uploads.ROUTES,
    *jobs.ROUTES,
    *follow.ROUTES,
    *artifacts.ROUTES,
    *change.ROUTES,
    *catalog.ROUTES,
    *videos.ROUTES,
    *webhooks.ROUTES,
    *documents.ROUTES,
)


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The app with its clients from the environment; `app.extensions["deps"].close()` ends them. Raises Invalid."""
    log_to_stderr()
    settings = Settings.read(environ)
    gate = Gate(settings)
    return make(open_deps(settings), gate=gate)


def make(deps: Deps, *, gate: Gate | None = None) -> Flask:
    """The app over these clients, with the gate that its settings say. Raises Invalid."""
    app = make_app("submit", ping=deps.ping)
    app.extensions["deps"] = deps

    def is_stopping() -> bool:
        stopping: Callable[[], bool] = app.extensions.get("is_stopping", lambda: False)
        return stopping()

    call = partial(
        Call,
        deps=deps,
        mail=Mail(deps.settings, Deliveries(deps.bus)),
        places=threading.BoundedSemaphore(deps.settings.max_followers),
        counter=Counter(),
        documents=_documents,
        is_stopping=is_stopping,
    )
    admitting = gate or Gate(deps.settings)
    for route in ROUTES:
        view = partial(_serve, route, call, admitting)
        app.add_url_rule(route.path, endpoint=f"{route.method} {route.path}", view_func=view, methods=[route.method])
    return app


@cache
def _documents() -> Mapping[str, Document]:
    # When they are first asked for: a function has to start fast.
    return documents.make(ROUTES)


def _serve(route: Route, call: Callable[..., Call], gate: Gate, **parts: Any) -> Response:
    try:
        caller = gate.admit(dict(request.headers), scope=route.scope) if route.scope else NOBODY
        return route.view(call(caller=caller), **parts)
    except (CineventError, HTTPException) as error:
        if route.on_error is None:
            raise
        return route.on_error(error)
