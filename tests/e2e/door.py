"""submit over a real log that tests share, each with a tenant of its own; and a job's life as its events tell it."""

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from flask.testing import FlaskClient

from engine.adapters.bus import Bus
from engine.adapters.history import History
from engine.adapters.store import open_store
from engine.contract.events import Event, rivals
from engine.contract.settings import Settings
from functions.deps import Deps
from functions.submit.app import make
from tests.make import a_body, an_event

GENERATE = "/api/v1/generate"
_TENANTS = (f"t{number}" for number in itertools.count())


@dataclass
class Door:
    """submit for one tenant; `say` is what other parts of the system would write into the log."""

    http: FlaskClient
    deps: Deps

    @property
    def tenant(self) -> str:
        return self.deps.settings.tenant

    def submit(self, headers: Mapping[str, str] | None = None, **over: Any) -> str:
        """The id of a new job."""
        answer = self.http.post(GENERATE, json=a_body(**over), headers=headers)
        assert answer.status_code == 202, answer.json
        return str(answer.json["id"])

    def say(self, name: str, job: str, **over: Any) -> Event:
        """The event `name` of the job, in the log."""
        event = an_event(name, tenant=self.tenant, job=job, **over)
        self.deps.bus.publish(event, first=rivals(event) if name in ("completed", "failed", "cancelled") else None)
        return event

    def get(self, job: str, **headers: str) -> Any:
        """The answer to a read of the job."""
        return self.http.get(f"/api/v1/jobs/{job}", headers=headers)


def a_door(bus: Bus, settings: Settings, **over: Any) -> Door:
    """submit with these settings replaced, for a tenant that nobody else has."""
    own = replace(settings, **{"tenant": next(_TENANTS), **over})
    deps = Deps(settings=own, bus=bus, history=History(bus), store=open_store(own), exits=ExitStack())
    return Door(http=make(deps).test_client(), deps=deps)
