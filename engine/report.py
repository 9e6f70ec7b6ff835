"""Report: what the world hears of a run while it runs.

Reporter tells how far it is (progress.py) from a thread of its own, so that neither a slow log nor a slow store ever
holds up a step. In: stages and steps. Out: progress events. It does not know what is computed.
"""

import logging
import resource
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from engine.contract.errors import CineventError
from engine.pace import Pace, Work, learn
from engine.paces import Paces
from engine.progress import Progress
from engine.voice import Voice

if TYPE_CHECKING:
    import torch

    from engine.preview import Previews

_log = logging.getLogger(__name__)

# Four a second look fluent; more only cost.
_INTERVAL_S = 0.25


class Reporter:
    """Tells the log each stage and, not too often, the newest step. Never raises, waits neither for log nor store."""

    def __init__(
        self,
        voice: Voice,
        *,
        work: Work,
        paces: Paces,
        previews: "Previews",
        device: "torch.device",
        interval_s: float = _INTERVAL_S,
    ) -> None:
        self._voice = voice
        self._work = work
        self._paces = paces
        self._previews = previews
        self._device = device
        self._interval_s = interval_s
        self._pace: Pace | None = None
        self._progress = Progress(work)
        self._seconds: dict[str, float] = {}
        self._stage, self._since = "", 0.0
        self._change = threading.Condition()
        self._has_news = False
        self._is_idle = False
        self._is_urgent = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def stage(self, name: str) -> None:
        """The run entered this stage; told at once."""
        with self._change:
            self._end_stage(name)
            self._progress.stage(name)
            self._has_news = self._is_urgent = True
            self._change.notify()

    def step(self, step: int, *, seconds: float, clean_bcfhw: "torch.Tensor | None" = None) -> None:
        """The run finished this denoising step; told at the next occasion, unless a newer one is there by then."""
        with self._change:
            self._progress.step(step, seconds=seconds)
            self._wake()
        _log.info("step %d/%d took %.3f s", step, self._work.steps, seconds)
        if clean_bcfhw is not None:
            self._previews.offer(clean_bcfhw, step=step)

    def part(self, share: float) -> None:
        """The run did this share of its stage, 0 to 1; told as a step is."""
        with self._change:
            self._progress.part(share, seconds=time.monotonic() - self._since)
            self._wake()
        _log.info("%s is %.1f %% done", self._stage, 100 * share)

    def close(self) -> None:
        """Say no more; what is on its way may still arrive."""
        with self._change:
            self._end_stage("")
            self._is_closed = True
            self._change.notify()
        self._previews.close()
        # The final event follows: a last word of progress before it is welcome, not worth waiting for.
        self._thread.join(timeout=1)

    def remember(self) -> None:
        """After a run that reached its end: let later ones know how long it took. At most a few seconds."""
        pace = learn(self._pace, self._work, {**self._seconds, **self._progress.step_seconds()})
        if pace:
            self._paces.keep(pace)

    def _wake(self) -> None:
        """There is news; only a thread that waits for some is woken, for that takes time from the step."""
        self._has_news = True
        if self._is_idle:
            self._change.notify()

    def _end_stage(self, next_one: str) -> None:
        """Note how long the stage took. One that is entered again counts from then: weights were fetched before."""
        now = time.monotonic()
        if self._stage:
            self._seconds[self._stage] = now - self._since
        self._stage, self._since = next_one, now

    def _run(self) -> None:
        pace = self._paces.recall()
        with self._change:
            self._pace = pace
            self._progress.expect(pace)
        number = 0
        while (data := self._take()) is not None:
            # Milliseconds: they go on growing when the same attempt is started again.
            number = max(number + 1, time.time_ns() // 1_000_000)
            try:
                self._voice.progress(data | self._facts(), number=number)
            except CineventError as error:
                _log.warning("progress is not heard: %s", error)

    def _take(self) -> dict[str, Any] | None:
        """The newest progress, after the interval or at once for a stage; None when it is over."""
        with self._change:
            self._change.wait_for(lambda: self._is_urgent or self._is_closed, timeout=self._interval_s)
            self._is_idle = True
            self._change.wait_for(lambda: self._has_news or self._is_closed)
            self._is_idle = False
            has_news, self._has_news, self._is_urgent = self._has_news, False, False
            return self._progress.data() if has_news else None

    def _facts(self) -> dict[str, Any]:
        preview = self._previews.newest
        return {"peak_memory_bytes": _peak_memory_bytes(self._device), **({"preview": preview} if preview else {})}


class Silence:
    """The reporter of all ranks but one."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def step(self, step: int, *, seconds: float, clean_bcfhw: "torch.Tensor | None" = None) -> None:
        """Nothing."""

    def part(self, share: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def remember(self) -> None:
        """Nothing."""


def _peak_memory_bytes(device: "torch.device") -> int:
    """The most memory that this process ever had: of its device, or of the host where it computes there."""
    if device.type == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # getrusage(2): kilobytes on Linux, bytes on macOS.
        return peak if sys.platform == "darwin" else peak * 1024
    import torch

    return int(torch.accelerator.max_memory_allocated(device))
