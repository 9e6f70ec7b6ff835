"""What dispatch expects of a launcher, and what it learns from one. Pure, but for the protocol's implementations.

A launcher starts the engine for one attempt of a job; what it started is a run, named after job and attempt. It decides
nothing: handler.py does, from what `observe` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from engine.contract.job import Job
from engine.contract.plan import Plan


class Phase(StrEnum):
    """Where a run is."""

    ABSENT = "absent"
    """There is none of this name."""
    PUT_ASIDE = "put_aside"
    """Ended so that it may be started again under the same name."""
    WAITING = "waiting"
    """It is there, and its processes are not up yet."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether the run has ended by itself."""
        return self in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a run ended without a result."""

    code: str
    message: str
    log_tail: str = ""
    retryable: bool = True

    def to_json(self) -> dict[str, str]:
        """The error as events carry it."""
        tail = {"log_tail": self.log_tail} if self.log_tail else {}
        return {"code": self.code, "message": self.message, **tail}


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """Why a run is not up yet."""

    reason: str
    """One of engine.contract.schemas.WAITING."""
    message: str
    since: datetime
    patience_s: float
    """How long after `since` it is given up as `failure`."""
    failure: Failure


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """A run as its launcher sees it now."""

    phase: Phase
    launched_at: datetime | None = None
    """When its processes began; None before."""
    failure: Failure | None = None
    """Set when the phase is FAILED."""
    waiting: Waiting | None = None
    """Set when the phase is WAITING."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActiveRun:
    """A run that holds a place, or waits for one in the cluster's own queue."""

    name: str
    tenant: str
    num_gpus: int
    is_queued: bool = False
    """It waits in Kueue."""


class Launcher(Protocol):
    """One way to start the engine; the promises are in tests/e2e/test_launcher.py and tests/kube/test_launcher.py."""

    name: str

    def launch(self, job: Job, *, attempt: int, plan: Plan, environ: Mapping[str, str]) -> None:
        """Start the run of this attempt; one that exists already is success.

        Raises Unavailable when it may work later, AtCapacity when there is no room for one more, and JobFailed when no
        time will help.
        """

    def observe(self, run: str, *, is_fresh: bool = False) -> Observation:
        """Where the run is; what is known may be a few seconds old, less if it is to be fresh. Raises Unavailable."""

    def cancel(self, run: str) -> None:
        """End the run: it is neither RUNNING nor WAITING afterwards. One that is over, or never was, is success.

        Nobody needs it any more: it is not among the active ones from now on. Raises Unavailable.
        """

    def active(self, *, is_fresh: bool = False) -> list[ActiveRun]:
        """All runs that are RUNNING or WAITING.

        Those of others may be known a few seconds late, less if they are to be fresh. Raises Unavailable.
        """

    def tenant_of(self, run: str) -> str:
        """Whose this run is, by its own mark; empty if there is none of this name. Raises Unavailable."""
