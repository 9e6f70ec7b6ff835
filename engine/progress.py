"""Progress: how far a run is and how long it will take. No clock, no thread; whoever drives it brings the seconds.

In: stages and steps as they come, and the pace of earlier runs. Out: the data of a progress event.
"""

from typing import Any

from engine.contract.schemas import STAGES
from engine.pace import Pace, Work

# Percent per stage while no earlier run tells better: denoising is most of any real run.
_SHARES = {"loading": 10, "encoding_text": 3, "denoising": 75, "decoding": 6, "encoding_video": 4, "storing": 2}
# Of a new step in the moving average, once there are ten: steady on a busy machine, and a lasting change shows soon.
_NEWEST = 0.1
# Less of a stage than this tells nothing of its rest.
_TELLING = 0.05
# 100 is said by the completed event alone.
_MOST = 99.99
_DENOISING = STAGES.index("denoising")


class Progress:
    """What is done and what is left of `work`."""

    def __init__(self, work: Work, pace: Pace | None = None) -> None:
        self._steps = work.steps
        self._work = work
        self._stage = 0
        self._step = 0
        self._share = 0.0
        """Of the stage, unless that is denoising."""
        self._share_s = 0.0
        self._percent = 0.0
        self._first_s: float | None = None
        self._later_s: float | None = None
        self._num_later = 0
        self.expect(pace)

    def expect(self, pace: Pace | None) -> None:
        """From now on, expect what earlier runs took."""
        self._is_measured = pace is not None
        self._weights = pace.seconds(self._work) if pace else _guess(self._steps)

    def stage(self, name: str) -> None:
        """The run entered this stage."""
        self._stage = STAGES.index(name)
        self._share = 0.0
        self._share_s = 0.0

    def part(self, share: float, *, seconds: float) -> None:
        """The run did this share of its stage, 0 to 1, in so many seconds; denoising is counted in steps."""
        assert self._stage != _DENOISING
        self._share, self._share_s = share, seconds

    def step(self, step: int, *, seconds: float) -> None:
        """The run finished this denoising step, in so many seconds."""
        self._step = max(self._step, step)
        if self._first_s is None:
            # The first one here, even if a run before this one did others: it warms up, and waits for weights.
            self._first_s = seconds
            return
        self._num_later += 1
        old = seconds if self._later_s is None else self._later_s
        self._later_s = old + max(_NEWEST, 1 / self._num_later) * (seconds - old)

    def step_seconds(self) -> dict[str, float]:
        """What a pace may learn of the steps; empty where there were too few."""
        if self._first_s is None or (self._later_s is None and self._steps > 1):
            # The first one alone tells nothing of those that another run of this job did.
            return {}
        step_s = self._first_s if self._later_s is None else self._later_s
        return {"warm_up": max(0.0, self._first_s - step_s), "step": step_s}

    def data(self) -> dict[str, Any]:
        """What a progress event says now."""
        done, total = self._done(), self._before(len(STAGES))
        # Never less than told before, whatever order things come in and whatever was learned meanwhile.
        self._percent = max(self._percent, min(_MOST, round(100 * done / total, 2)))
        eta_s = self._eta_s()
        return {
            "stage": STAGES[self._stage],
            "step": self._step,
            "steps": self._steps,
            "percent": self._percent,
            "eta_s": None if eta_s is None else round(eta_s, 3),
            "seconds_per_step": self._first_s if self._later_s is None else self._later_s,
        }

    def _done(self) -> float:
        """The weight of what is done."""
        if self._stage != _DENOISING:
            within = self._share * self._weights[STAGES[self._stage]]
        elif self._step > 0:
            within = self._weights["warm_up"] + self._step * self._weights["step"]
        else:
            within = 0.0
        return self._before(self._stage) + within

    def _before(self, stage: int) -> float:
        return sum(_of_stage(self._weights, name, self._steps) for name in STAGES[:stage])

    def _eta_s(self) -> float | None:
        """Seconds to the end; None before anything tells how long a step is."""
        step_s = self._step_s()
        if step_s is None:
            return None
        # Guessed weights become seconds by the first thing that is measured.
        scale = 1.0 if self._is_measured else step_s / self._weights["step"]
        seconds = {part: weight * scale for part, weight in self._weights.items()} | {"step": step_s}
        later = sum(_of_stage(seconds, name, self._steps) for name in STAGES[self._stage + 1 :])
        if self._share >= _TELLING:
            return later + self._share_s * (1 - self._share) / self._share
        if self._stage == _DENOISING and self._step > 0:
            return later + (self._steps - self._step) * step_s
        return later + _of_stage(seconds, STAGES[self._stage], self._steps)

    def _step_s(self) -> float | None:
        """Seconds of a step: measured here, the first one excepted, else by earlier runs, else by the first one."""
        if self._later_s is not None:
            return self._later_s
        return self._weights["step"] if self._is_measured else self._first_s


def _guess(steps: int) -> dict[str, float]:
    """Weights of the parts, in no unit."""
    shares = {name: float(share) for name, share in _SHARES.items()}
    return {**shares, "warm_up": 0.0, "step": shares["denoising"] / steps}


def _of_stage(parts: dict[str, float], name: str, steps: int) -> float:
    return parts["warm_up"] + steps * parts["step"] if name == "denoising" else parts[name]
