"""Voice: the events of an attempt, one method each.

In: what happened. Out: an event in the log, or wherever another voice puts it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.adapters.bus import Bus
from engine.contract.artifact import completed_data
from engine.contract.errors import Conflict, JobFailed
from engine.contract.events import job_event, rivals

_log = logging.getLogger(__name__)

# A started event must not be lost: progress before it is not counted.
_STARTED_DEADLINE_S = 60.0
# The work is done and paid for: worth waiting until a log server came back from a restart.
_FINAL_DEADLINE_S = 600.0
# Whoever drains a run waits for its end, and not for long.
_DRAINED_DEADLINE_S = 5.0


class Voice(Protocol):
    """Says what becomes of one attempt of one job."""

    def started(self, *, world_size: int) -> None:
        """All ranks are up. Raises Unavailable."""

    def progress(self, data: Mapping[str, Any], *, number: int) -> None:
        """The run reached this point; later numbers are later. Raises Unavailable."""

    def drained(self) -> None:
        """The run ends because it was told to. Raises Unavailable."""

    def completed(self, manifest: bytes) -> None:
        """The artifacts of `manifest` (the bytes of manifest.json) are in the store. Raises Unavailable."""

    def failed(self, error: JobFailed) -> None:
        """The job will not be tried again. Raises Unavailable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogVoice:
    """A voice whose words are events in the log."""

    bus: Bus
    tenant: str
    job: str
    attempt: int
    extensions: Mapping[str, str] = field(default_factory=dict)
    """The trace context of the job, on every event."""
    drains: int = 1
    """Attempts of the job that were drained, should this one be, too."""

    def started(self, *, world_size: int) -> None:
        self._say("started", {"world_size": world_size}, deadline_s=_STARTED_DEADLINE_S)

    def progress(self, data: Mapping[str, Any], *, number: int) -> None:
        event = job_event(
            "progress",
            {"attempt": self.attempt, **data},
            tenant=self.tenant,
            job=self.job,
            key=f"a{self.attempt}-{number}",
            extensions={**self.extensions, "sequence": f"{number:020}"},
        )
        self.bus.publish(event)

    def drained(self) -> None:
        self._say("drained", {"drains": self.drains}, deadline_s=_DRAINED_DEADLINE_S)

    def completed(self, manifest: bytes) -> None:
        self._say_last("completed", completed_data(manifest))

    def failed(self, error: JobFailed) -> None:
        self._say_last("failed", {"error": {"code": error.code, "message": error.message}})

    def _say_last(self, name: str, data: Mapping[str, Any]) -> None:
        try:
            self._say(name, data, is_outcome=True, deadline_s=_FINAL_DEADLINE_S)
        except Conflict:
            # Another rank, attempt or canceller: the first word counts, and ours is not needed.
            _log.info("the job has an outcome already; this one (%s) is dropped", name)

    def _say(self, name: str, data: Mapping[str, Any], *, deadline_s: float, is_outcome: bool = False) -> None:
        event = job_event(
            name,
            {"attempt": self.attempt, **data},
            tenant=self.tenant,
            job=self.job,
            key=f"a{self.attempt}",
            extensions=self.extensions,
        )
        self.bus.publish(event, first=rivals(event) if is_outcome else None, deadline_s=deadline_s)
        _log.info("the log has it: %s", name)
