"""How many jobs of a tenant wait and run, counted by the subjects that stand in the log."""

import time
from dataclasses import dataclass

from engine.adapters.bus import Bus
from engine.contract.request import PRIORITIES

# Counting lists every subject of a tenant, some milliseconds per thousand jobs; what is known may be this old.
_COUNT_AGE_S = 1.0
# A count is on the way of a submit, whose answer is wanted within a second.
_DEADLINE_S = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """A tenant's jobs that have not ended."""

    waiting: dict[str, tuple[str, ...]]
    """Subjects of the requests that no run was started for, by priority."""
    num_running: int

    @property
    def num_waiting(self) -> int:
        """Of all priorities."""
        return sum(len(subjects) for subjects in self.waiting.values())


class Counter:
    """Counts of tenants, each at most a second old. Used by several threads, which may count the same at once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Counts]] = {}
        self._accepted: dict[str, int] = {}

    def counts(self, bus: Bus, tenant: str) -> Counts:
        """The tenant's jobs that have not ended. Raises Unavailable."""
        at, known = self._known.get(tenant, (0.0, None))
        if known is None or time.monotonic() - at > _COUNT_AGE_S:
            self._accepted[tenant] = 0
            known = _count(bus, tenant)
            self._known[tenant] = (time.monotonic(), known)
        return known

    def num_waiting(self, bus: Bus, tenant: str) -> int:
        """The same, with what was accepted here since it was counted. Raises Unavailable."""
        return self.counts(bus, tenant).num_waiting + self._accepted.get(tenant, 0)

    def accepted(self, tenant: str) -> None:
        """One more job of the tenant waits."""
        self._accepted[tenant] = self._accepted.get(tenant, 0) + 1


def _count(bus: Bus, tenant: str) -> Counts:
    requested, launched, done = (
        bus.subjects("CINEVENT_JOBS", f"cinevent.{tenant}.*.{suffix}", deadline_s=_DEADLINE_S)
        for suffix in ("requested.*", "launched", "done.*")
    )
    begun, ended = ({subject.split(".")[2] for subject in subjects} for subjects in (launched, done))
    waiting: dict[str, list[str]] = {name: [] for name in PRIORITIES}
    for subject in requested:
        _, _, job, _, priority = subject.split(".")
        if job not in begun and job not in ended:
            waiting[priority].append(subject)
    return Counts(waiting={name: tuple(found) for name, found in waiting.items()}, num_running=len(begun - ended))
