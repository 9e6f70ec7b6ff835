"""notify: gets the outcomes of jobs from a source and sends them to webhooks. The edge; decisions are handler.py's.

204: the receiver has it, nobody asked for it, or the receiver is gone for good. 503: the source is to come again.
"""

import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime

from flask import Flask, Response

from engine.contract.request import WEBHOOK_EVENTS
from engine.contract.settings import Settings
from functions.deps import Deps, open_deps
from functions.notify.handler import delivery, is_gone
from functions.notify.send import send
from functions.notify.webhook import read_secret
from functions.web import empty, log_to_stderr, make_app, read_event

_LOG = logging.getLogger(__name__)


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The app with its clients from the environment; `app.extensions["deps"].close()` ends them. Raises Invalid."""
    log_to_stderr()
    settings = Settings.read(environ)
    key = read_secret(settings.webhook_secret) if settings.webhook_secret else None
    return make(open_deps(settings), key=key)


def make(deps: Deps, *, key: bytes | None) -> Flask:
    """The app over these clients; without a key it is up, but delivers nothing."""
    app = make_app("notify", ping=deps.ping)
    app.extensions["deps"] = deps

    @app.post("/")
    def receive() -> Response:
        event = read_event(WEBHOOK_EVENTS)
        job = deps.history.get(event.data["tenant"], event.data["job"])
        sending = delivery(event, job, key=key, now=datetime.now(UTC))
        if sending and is_gone(send(sending, timeout_s=deps.settings.webhook_timeout_s)):
            _LOG.warning("given up job=%s event=%s: the webhook's receiver is gone (410)", job.id, event.name)
        return empty(204)

    return app
