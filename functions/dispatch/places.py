"""Places: whether one more run may be started now, and whose turn it is. Numbers only; the cluster is the launcher's.

Without Kueue the settings limit runs, GPUs and each tenant. With it quota, fair shares and preemption are Kueue's, and
only the runs that wait there are limited. The count is exact within this process: what is being started counts already.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from engine.contract.errors import AtCapacity, TenantAtCapacity
from engine.contract.job import Job
from engine.contract.settings import Settings
from functions.dispatch.launcher import ActiveRun

# A waiting request asks again this often; it costs one small HTTP call.
_RETRY_AFTER_S = 1.0
# A tenant's request waits by itself; the further back in its line, the longer.
_TENANT_RETRY_AFTER_S = 5.0
_TENANT_RETRY_STEP_S = 0.1
# Somebody in line who is this much later than told does not come any more, and holds up nobody.
_LATE = 2.0


class Active(Protocol):
    """How the active runs are asked for: a launcher's `active`."""

    def __call__(self, *, is_fresh: bool) -> Iterable[ActiveRun]:
        """All of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiter:
    """A request of a tenant that was sent away."""

    place: int
    """Its sequence in the log: its place in line."""
    until: float
    """When it is not waited for any more."""


class Places:
    """The places of one dispatch process; for any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._taken: dict[str, ActiveRun] = {}
        self._lines: dict[tuple[str, str], dict[str, _Waiter]] = defaultdict(dict)

    @contextmanager
    def take(self, job: Job, wanted: ActiveRun, *, active: Active) -> Iterator[None]:
        """Hold a place while `wanted` is started. Raises AtCapacity, TenantAtCapacity, and what `active` raises.

        A run of the same job takes nobody's place: it is the one that is followed, or the very same.
        """
        try:
            self._reserve(job, wanted, active, is_fresh=False)
        except AtCapacity:
            # Perhaps a place has become free since: an old list has too many runs, not too few.
            self._reserve(job, wanted, active, is_fresh=True)
        try:
            yield
        finally:
            with self._lock:
                del self._taken[wanted.name]

    def _reserve(self, job: Job, wanted: ActiveRun, active: Active, *, is_fresh: bool) -> None:
        # Before the lock, so that all wait for one answer and not each for its own. Within it the answer is at hand.
        active(is_fresh=is_fresh)
        with self._lock:
            self._admit(job, wanted, active(is_fresh=is_fresh))
            self._taken[wanted.name] = wanted

    def _admit(self, job: Job, wanted: ActiveRun, active: Iterable[ActiveRun]) -> None:
        others = {run.name: run for run in (*active, *self._taken.values()) if not run.name.startswith(job.id)}
        check(others.values(), wanted, self._settings)
        self._check_tenant(others.values(), job)

    def _check_tenant(self, others: Iterable[ActiveRun], job: Job) -> None:
        most = self._settings.max_tenant_runs
        if not most or self._settings.kueue_queue:
            return
        line = self._line(job)
        ahead = sum(1 for waiter in line.values() if waiter.place < job.sequence) if job.attempt == 0 else 0
        is_full = sum(1 for run in others if run.tenant == job.tenant) >= most
        if not (is_full or ahead):
            line.pop(job.id, None)
            return
        retry_after_s = _TENANT_RETRY_AFTER_S + _TENANT_RETRY_STEP_S * ahead
        if job.attempt == 0:
            line[job.id] = _Waiter(place=job.sequence, until=time.monotonic() + _LATE * retry_after_s)
        message = (
            f"{most} runs of tenant {job.tenant} are active, which is its limit, or {ahead} of its jobs come first"
        )
        raise TenantAtCapacity(message, retry_after_s=retry_after_s)

    def _line(self, job: Job) -> dict[str, _Waiter]:
        """Those of the same tenant and priority who were sent away and will come again."""
        key = (job.tenant, job.request.priority)
        now = time.monotonic()
        self._lines[key] = {name: waiter for name, waiter in self._lines[key].items() if waiter.until > now}
        return self._lines[key]


def check(others: Iterable[ActiveRun], wanted: ActiveRun, settings: Settings) -> None:
    """Raise AtCapacity unless there is a place for `wanted` beside `others`."""
    runs = list(others)
    if settings.kueue_queue:
        waiting = sum(run.is_queued for run in runs)
        if waiting >= settings.max_runs:
            raise _full(f"{waiting} runs wait in Kueue's {settings.kueue_queue}, which is the limit")
        return
    if len(runs) >= settings.max_runs:
        raise _full(f"{settings.max_runs} runs are active, which is the limit")
    gpus = sum(run.num_gpus for run in runs)
    if settings.max_gpus and gpus + wanted.num_gpus > settings.max_gpus:
        raise _full(f"{gpus} of {settings.max_gpus} GPUs are taken, and the next run needs {wanted.num_gpus}")


def _full(message: str) -> AtCapacity:
    return AtCapacity(message, retry_after_s=_RETRY_AFTER_S)
