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
    """Never started, or put aside so that it may be started again under the same name."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


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
class Observation:
    """A run as its launcher sees it now."""

    phase: Phase
    launched_at: datetime | None = None
    failure: Failure | None = None
    """Set when the phase is FAILED."""


class Launcher(Protocol):
    """One way to start the engine; the promises are in tests/contract/test_launcher.py."""

    name: str

    def launch(self, job: Job, *, attempt: int, plan: Plan, environ: Mapping[str, str]) -> None:
        """Start the run of this attempt; one that exists already is success. Raises Unavailable."""

    def observe(self, run: str) -> Observation:
        """Where the run is. Raises Unavailable."""

    def cancel(self, run: str) -> None:
        """End the run; it is not RUNNING afterwards. One that has ended, or never was, is success."""

    def active(self) -> list[str]:
        """The names of all runs that are RUNNING."""
