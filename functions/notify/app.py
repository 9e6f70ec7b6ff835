"""notify: gets events from its sources and sends them to webhooks. The edge; what is done is post_office.py's.

204: every event of the batch has its deliveries, or every delivery its attempt, and what follows is in the log. 503:
the source is to come again.
"""

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from flask import Flask, Response, request

from engine.adapters.deliveries import Deliveries
from engine.contract.codec import decode_batch
from engine.contract.delivery import DELIVERY, Delivery
from engine.contract.errors import BadEvent, Problem
from engine.contract.events import Event
from engine.contract.request import WEBHOOK_CHOICES
from engine.contract.schemas import validate
from engine.contract.settings import Settings
from engine.contract.signature import read_private_key, read_secret
from engine.contract.text import words
from functions.deps import Deps, open_deps
from functions.directory import Directory
from functions.guard import Lookup
from functions.notify.courier import Terms
from functions.notify.post_office import PostOffice
from functions.web import empty, log_to_stderr, make_app

# A batch of a hundred deliveries, each below 20 kB of body, escaped.
_MAX_BODY_BYTES = 16 * 2**20


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The app with its clients from the environment; `app.extensions["deps"].close()` ends them. Raises Invalid."""
    log_to_stderr()
    return make(open_deps(Settings.read(environ)))


def make(deps: Deps, *, lookup: Lookup | None = None) -> Flask:
    """The app over these clients; `lookup` resolves names in place of the system. Raises Invalid."""
    app = make_app("notify", ping=deps.ping)
    app.extensions["deps"] = deps
    office = _office(deps, lookup)
    deps.exits.callback(office.close)

    @app.post("/")
    def receive() -> Response:
        request.max_content_length = _MAX_BODY_BYTES
        events = decode_batch(dict(request.headers), request.get_data())
        deliveries = [Delivery.from_event(event) for event in events if event.type == DELIVERY]
        told = [_checked(event) for event in events if event.type != DELIVERY]
        if told:
            office.spread(told)
        if deliveries:
            office.deliver(deliveries)
        return empty(204)

    return app


def _office(deps: Deps, lookup: Lookup | None) -> PostOffice:
    settings = deps.settings
    deliveries = Deliveries(deps.bus)
    terms = Terms(
        policy=settings.webhook_policy(),
        signing_keys=[
            read_private_key(text, "CINEVENT_WEBHOOK_SIGNING_KEYS") for text in words(settings.webhook_signing_keys)
        ],
        origin=urlsplit(settings.public_url).hostname or "cinevent",
        timeout_s=settings.webhook_timeout_s,
        patience_s=settings.webhook_patience_s,
        time_scale=settings.webhook_time_scale,
        lookup=lookup,
    )
    keys = [read_secret(text, "CINEVENT_WEBHOOK_SECRET") for text in words(settings.webhook_secret)]
    return PostOffice(settings, deliveries, Directory(settings, deliveries), terms, keys=keys)


def _checked(event: Event) -> Event:
    if event.name not in WEBHOOK_CHOICES:
        message = f"notify takes {', '.join(WEBHOOK_CHOICES)}; this is {event.type}"
        raise BadEvent(Problem(pointer="/type", rule="enum", message=message))
    return validate(event)
