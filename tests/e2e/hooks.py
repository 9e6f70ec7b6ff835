"""What the tests of webhooks share: notify over real HTTP with its sources, endpoints in a file, their records."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from werkzeug.serving import make_server

from engine.adapters.bus import Bus
from engine.adapters.deliveries import Deliveries, Record
from engine.contract.events import Event
from engine.contract.job import derived_id
from engine.contract.settings import Settings
from functions.deps import open_deps
from functions.guard import Lookup
from functions.notify.app import make
from tests.e2e.sources import NOTHING, in_hand, source_thread
from tests.make import TENANT, a_request, an_event

SECRET = "whsec_" + base64.b64encode(b"cinevent" * 4).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"tnevenic" * 4).decode()
SIGNING_KEY = "whsk_" + base64.b64encode(b"ed25519!" * 4).decode()
CONSUMERS = ("notify-done", "notify-progress", "notify-deliveries")


def hook_settings(settings: Settings, **over: Any) -> Settings:
    """Settings for receivers on this machine, with waits a thousandth as long."""
    defaults = {
        "webhook_secret": SECRET,
        "webhook_allow": "127.0.0.0/8,::1/128",
        "webhook_timeout_s": 1.0,
        "webhook_patience_s": 0.3,
        "webhook_time_scale": 0.001,
        "public_url": "https://cinevent.example",
    }
    return replace(settings, **{**defaults, **over})


def endpoints_file(path: Path, *endpoints: dict[str, Any]) -> str:
    """The path of a file with these endpoints; each has a name and a secret unless it brings one."""
    rows = [{"name": f"shop-{n}", "secrets": [SECRET], **endpoint} for n, endpoint in enumerate(endpoints)]
    path.write_text(json.dumps({"endpoints": rows}))
    return str(path)


@contextlib.contextmanager
def notify_server(settings: Settings, *, lookup: Lookup | None = None) -> Iterator[str]:
    """The address of notify, served with threads as gunicorn would."""
    deps = open_deps(settings)
    server = make_server("127.0.0.1", 0, make(deps, lookup=lookup), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        deps.close()


@contextlib.contextmanager
def notify_system(settings: Settings, *, lookup: Lookup | None = None) -> Iterator[str]:
    """notify and both of its sources."""
    with (
        notify_server(settings, lookup=lookup) as url,
        source_thread("outcomes", settings, url),
        source_thread("deliveries", settings, url),
    ):
        yield url


def is_idle(settings: Settings) -> bool:
    """Whether nothing is queued or in hand; what waits for an alarm does not count."""
    return all(in_hand(settings, consumer) == NOTHING for consumer in CONSUMERS)


def accept(bus: Bus, url: str, *events: str, number: int = 0) -> str:
    """A job in the log whose outcomes `events` are to be sent to `url`; returns its id."""
    webhook = {"url": url, "events": list(events or ("completed", "failed", "cancelled"))}
    job = a_job_id(number)
    bus.publish(an_event("requested", job=job, request=a_request(webhook=webhook).to_json()))
    return job


def accept_quietly(bus: Bus, number: int) -> str:
    """A job without a webhook of its own."""
    job = a_job_id(number)
    bus.publish(an_event("requested", job=job))
    return job


def a_job_id(number: int) -> str:
    return derived_id(TENANT, "hook", str(number))


def ended(job: str, name: str = "completed") -> Event:
    """The outcome of a job."""
    return an_event(name, job=job)


def records(bus: Bus, job: str) -> list[Record]:
    """Every attempt of a job's deliveries, the oldest first."""
    return Deliveries(bus).of_job(TENANT, job)
