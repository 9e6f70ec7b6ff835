"""Report: what the log hears of an attempt.

A Voice says an attempt's events; Progress computes how far it is; Reporter tells that from a thread of its own, so
that a slow log never holds up a step. In: stages and steps. Out: events. It does not know what is computed.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.adapters.bus import Bus
from engine.contract.artifact import completed_data
from engine.contract.errors import CineventError, Conflict, JobFailed
from engine.contract.events import job_event, rivals
from engine.contract.schemas import STAGES

_log = logging.getLogger(__name__)

# Percent per stage. A guess, the same for all models: denoising is most of any real run. The time that is left is
# counted in measured steps, not in guessed seconds.
_SHARES = {"loading": 10, "encoding_text": 3, "denoising": 75, "decoding": 6, "encoding_video": 4, "storing": 2}
# Of a new step's duration in the moving average: the first steps are slow, five later ones outweigh them.
_NEWEST = 0.3
# A started event must not be lost: progress before it is not counted.
_STARTED_DEADLINE_S = 60.0
# The work is done and paid for: worth waiting until a log server came back from a restart.
_FINAL_DEADLINE_S = 600.0
# Whoever drains a run waits for its end, and not for long.
_DRAINED_DEADLINE_S = 5.0
# Four a second look fluent; more only cost.
_INTERVAL_S = 0.25


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


class Progress:
    """How far a run is; each call returns the data of a progress event. No clock, no thread."""

    def __init__(self, *, steps: int) -> None:
        self._steps = steps
        self._stage = STAGES[0]
        self._step = 0
        self._percent = 0.0
        self._seconds_per_step: float | None = None

    def stage(self, name: str) -> dict[str, Any]:
        """The run entered this stage."""
        self._stage = name
        return self._data(_share_before(name))

    def step(self, step: int, *, seconds: float) -> dict[str, Any]:
        """The run finished this denoising step, in so many seconds."""
        old = self._seconds_per_step
        self._seconds_per_step = seconds if old is None else old + _NEWEST * (seconds - old)
        self._step = max(self._step, step)
        return self._data(_share_before("denoising") + _SHARES["denoising"] * self._step / self._steps)

    def _data(self, percent: float) -> dict[str, Any]:
        # Never less than told before, whatever order things come in.
        self._percent = max(self._percent, round(percent, 2))
        return {
            "stage": self._stage,
            "step": self._step,
            "steps": self._steps,
            "percent": self._percent,
            "eta_s": self._eta_s(),
            "seconds_per_step": self._seconds_per_step,
        }

    def _eta_s(self) -> float | None:
        if self._seconds_per_step is None:
            return None
        seconds_per_percent = self._seconds_per_step * self._steps / _SHARES["denoising"]
        return round((100 - self._percent) * seconds_per_percent, 3)


class Reporter:
    """Tells the log each stage and, not too often, the newest step. Never raises, never waits for the log."""

    def __init__(self, voice: Voice, *, steps: int, interval_s: float = _INTERVAL_S) -> None:
        self._voice = voice
        self._progress = Progress(steps=steps)
        self._interval_s = interval_s
        self._change = threading.Condition()
        self._newest: dict[str, Any] | None = None
        self._is_urgent = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def stage(self, name: str) -> None:
        """The run entered this stage; told at once."""
        self._put(self._progress.stage(name), is_urgent=True)

    def step(self, step: int, *, seconds: float) -> None:
        """The run finished this denoising step; told at the next occasion, unless a newer one is there by then."""
        data = self._progress.step(step, seconds=seconds)
        _log.info("step %d/%d took %.3f s", step, data["steps"], seconds)
        self._put(data, is_urgent=False)

    def close(self) -> None:
        """Say no more; what is on its way may still arrive."""
        with self._change:
            self._is_closed = True
            self._change.notify()
        # The final event follows: a last word of progress before it is welcome, not worth waiting for.
        self._thread.join(timeout=1)

    def _put(self, data: dict[str, Any], *, is_urgent: bool) -> None:
        with self._change:
            self._newest = data
            self._is_urgent |= is_urgent
            self._change.notify()

    def _run(self) -> None:
        number = 0
        while (data := self._take()) is not None:
            # Milliseconds: they go on growing when the same attempt is started again.
            number = max(number + 1, time.time_ns() // 1_000_000)
            try:
                self._voice.progress(data, number=number)
            except CineventError as error:
                _log.warning("progress is not heard: %s", error)

    def _take(self) -> dict[str, Any] | None:
        """The newest progress, after the interval or at once for a stage; None when it is over."""
        with self._change:
            self._change.wait_for(lambda: self._is_urgent or self._is_closed, timeout=self._interval_s)
            self._change.wait_for(lambda: self._newest is not None or self._is_closed)
            data, self._newest, self._is_urgent = self._newest, None, False
            return data


class Silence:
    """The reporter of all ranks but one."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def step(self, step: int, *, seconds: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _share_before(stage: str) -> float:
    return float(sum(_SHARES[name] for name in STAGES[: STAGES.index(stage)]))
