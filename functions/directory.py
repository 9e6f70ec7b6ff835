"""The directory: which standing endpoints there are, and how they do. For notify, which sends, and submit, which shows.

The endpoints come from a file that is read again when it changed: a bad new version is logged, and the last good one
stays. How they do is the last word about each in the log.
"""

import logging
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.adapters.deliveries import Deliveries
from engine.contract.delivery import status_event
from engine.contract.endpoint import Endpoint, parse_endpoints
from engine.contract.errors import Invalid, NotFound, Problem
from engine.contract.settings import Settings, env_name

_LOG = logging.getLogger(__name__)
# A change of the file is seen, and another process's word about an endpoint is heard, within this time.
_FRESH_S = 1.0
HEALTHY, FAILING, DISABLED = "healthy", "failing", "disabled"


class Directory:
    """Standing endpoints of all tenants; safe in threads."""

    def __init__(self, settings: Settings, deliveries: Deliveries) -> None:
        """Raises Invalid if the file cannot be used: a process does not start with one."""
        self._path = Path(settings.webhook_endpoints) if settings.webhook_endpoints else None
        self._tenant = settings.tenant
        self._deliveries = deliveries
        self._lock = threading.Lock()
        self._files: dict[Path, float] = {}
        self._endpoints: Mapping[tuple[str, str], Endpoint] = self._load()
        self._looked_at = time.monotonic()
        self._statuses: dict[tuple[str, str], dict[str, Any]] = {}
        self._heard_at = -_FRESH_S

    def all(self, tenant: str) -> list[Endpoint]:
        """The endpoints of a tenant."""
        return [endpoint for (owner, _), endpoint in self._fresh().items() if owner == tenant]

    def find(self, tenant: str, name: str) -> Endpoint:
        """Raises NotFound."""
        found = self._fresh().get((tenant, name))
        if found is None:
            raise NotFound(f"there is no endpoint {name[:40]!r} in the file that {env_name('webhook_endpoints')} names")
        return found

    def status(self, endpoint: Endpoint) -> Mapping[str, Any]:
        """The last word about an endpoint: `state`, `since`, `why`. Raises Unavailable."""
        if not endpoint.is_standing:
            return {"state": HEALTHY}
        with self._lock:
            if time.monotonic() - self._heard_at > _FRESH_S:
                self._statuses = self._deliveries.statuses()
                self._heard_at = time.monotonic()
            return self._statuses.get((endpoint.tenant, endpoint.name), {"state": HEALTHY})

    def say(self, endpoint: Endpoint, state: str, *, since: datetime, why: str = "") -> None:
        """Write down how an endpoint does. Raises Unavailable."""
        event = status_event(endpoint.tenant, endpoint.name, state=state, since=since, why=why)
        self._deliveries.say_status(event)
        with self._lock:
            self._statuses[endpoint.tenant, endpoint.name] = dict(event.data)
        _LOG.warning("endpoint=%s tenant=%s state=%s why=%s", endpoint.name, endpoint.tenant, state, why)

    def _fresh(self) -> Mapping[tuple[str, str], Endpoint]:
        with self._lock:
            now = time.monotonic()
            if self._path and now - self._looked_at > _FRESH_S:
                self._looked_at = now
                if any(_changed_at(path) != at for path, at in self._files.items()):
                    try:
                        self._endpoints = self._load()
                    except Invalid as error:
                        _LOG.error("the endpoints stay as they were: %s", error)
            return self._endpoints

    def _load(self) -> Mapping[tuple[str, str], Endpoint]:
        if self._path is None:
            return {}
        self._files = {self._path: _changed_at(self._path)}

        def read(name: str) -> str:
            path = Path(name)
            self._files[path] = _changed_at(path)
            return path.read_text()

        return parse_endpoints(read_file(self._path), tenant=self._tenant, read=read)


def read_file(path: Path) -> Any:
    """What stands in a YAML or JSON file. Raises Invalid."""
    # Only here: most processes have no such file, and do without the library's start.
    import yaml

    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        problem = f"cannot read {path}: {error.strerror}"
    except (yaml.YAMLError, ValueError) as error:
        problem = f"{path} is not YAML: {' '.join(str(error).split())[:200]}"
    raise Invalid(Problem(pointer=env_name("webhook_endpoints"), rule="file", message=problem))


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
