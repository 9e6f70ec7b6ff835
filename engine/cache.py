"""Cache: steps that make do with what earlier steps computed.

In: what the request asks for, the schedule and the row's calibration. Out: a StepCache for the step loop. Which steps
reuse something is settled before the first one, by the schedule alone and never by what a rank has computed: ranks that
disagreed would wait for each other for ever.

`magcache` (arXiv:2506.09045): what the blocks add to their input stands in for all blocks, while the calibrated changes
of its magnitude stay small. `taylorseer` (arXiv:2503.06923), in its form with one cached tensor per model: the guided
prediction itself is continued along its last difference, and the experts are not called at all. Caching each layer, as
in its first form, would take 120 GB for A14B at 720p.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from engine.contract.magnitudes import Magnitudes
from engine.contract.models import ModelRow

# TaylorSeer: steps of each expert that are computed first, for a difference to begin with, and then one in so many.
WARM_UP = 3
INTERVAL = 3

Predict = Callable[[], torch.Tensor]


class StepCache(Protocol):
    """What the step loop asks of a cache."""

    reused: frozenset[int]
    """The steps that are not computed, or not wholly; steps count from 0."""

    def velocity(self, predict: Predict, *, expert: Any, step: int) -> torch.Tensor:
        """The prediction of a step, by `predict` or by what is cached."""
        ...

    def is_whole(self, step: int) -> bool:
        """Whether `memory` before this step is all that a run needs to go on from it."""
        ...

    def memory(self) -> Mapping[str, Any]:
        """What is cached and goes into a checkpoint; later steps do not change it."""
        ...

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on with this."""
        ...


class NoCache:
    """Every step is computed."""

    reused: frozenset[int] = frozenset()

    def velocity(self, predict: Predict, *, expert: Any, step: int) -> torch.Tensor:  # noqa: ARG002
        """The expert's."""
        return predict()

    def is_whole(self, step: int) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def memory(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Nothing to recall."""


class MagCache:
    """The residual of all blocks is kept on the ranks that computed it, and added in the steps that reuse it.

    It is far larger than latents and stays out of checkpoints: a run goes on from before a step that is computed, which
    needs none.
    """

    def __init__(self, reused: frozenset[int]) -> None:
        self.reused = reused
        self._last: Any = None

    def velocity(self, predict: Predict, *, expert: Any, step: int) -> torch.Tensor:
        """The expert's, which in a reused step calls no block."""
        if self._last is not None and self._last is not expert:
            # Its turn is over: room for the other one's.
            self._last.blocks.forget()
        self._last = expert
        expert.blocks.begin(is_reused=step in self.reused)
        return predict()

    def is_whole(self, step: int) -> bool:
        """Before a step that is computed."""
        return step not in self.reused

    def memory(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Nothing to recall."""


class TaylorSeer:
    """The guided prediction as a Taylor series of first order over the steps, in float32; all ranks hold the same."""

    def __init__(self, reused: frozenset[int], *, experts: Sequence[int]) -> None:
        self.reused = reused
        self._experts = experts
        self._computed: list[int] = []
        """The last step that was computed, if there was one."""
        self._terms: list[torch.Tensor] = []
        """The prediction of that step, and its change per step once there were two."""

    def velocity(self, predict: Predict, *, expert: Any, step: int) -> torch.Tensor:  # noqa: ARG002
        """The guided prediction, continued or computed."""
        if step in self.reused:
            value, change = self._terms
            return value + change * (step - self._computed[0])
        velocity = predict()
        value = velocity.to(torch.float32)
        # Another expert's prediction says nothing about this one's.
        has_before = bool(self._computed) and self._experts[self._computed[0]] == self._experts[step]
        change = [(value - self._terms[0]) / (step - self._computed[0])] if has_before else []
        self._computed, self._terms = [step], [value, *change]
        return velocity

    def is_whole(self, step: int) -> bool:  # noqa: ARG002
        """Always: it is two tensors of the size of the latents."""
        return True

    def memory(self) -> Mapping[str, Any]:
        """The series."""
        return {"computed": list(self._computed), "terms": list(self._terms)}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Continue this series."""
        if memory:
            self._computed, self._terms = list(memory["computed"]), list(memory["terms"])


def make_cache(name: str, row: ModelRow, experts: Sequence[int]) -> StepCache:
    """The cache of a request for `row`; `experts` says which one works in each step."""
    if name == "magcache":
        assert row.magnitudes is not None
        return MagCache(magcache_steps(row.magnitudes, experts))
    return TaylorSeer(taylorseer_steps(experts), experts=experts) if name == "taylorseer" else NoCache()


def magcache_steps(magnitudes: Magnitudes, experts: Sequence[int]) -> frozenset[int]:
    """The steps that reuse a residual, by the rule of diffusers' MagCacheConfig, for each expert by itself."""
    reused = set()
    for expert in set(experts):
        steps = _steps_of(expert, experts)
        ratios = _stretch(magnitudes.ratios[expert], len(steps))
        first = int(magnitudes.retention[expert] * len(steps) + 0.5)
        product, error, count = 1.0, 0.0, 0
        for index in range(first, len(steps)):
            product *= ratios[index]
            error += abs(1 - product)
            count += 1
            # Not the first: there is no residual yet.
            if index > 0 and error <= magnitudes.threshold and count <= magnitudes.max_reused:
                reused.add(steps[index])
            else:
                product, error, count = 1.0, 0.0, 0
    return frozenset(reused)


def taylorseer_steps(experts: Sequence[int]) -> frozenset[int]:
    """The steps that are continued: of each expert all but the first, every INTERVAL-th after them and the last."""
    reused = set()
    for expert in set(experts):
        steps = _steps_of(expert, experts)
        continued = [i for i in range(WARM_UP, len(steps) - 1) if (i - WARM_UP - 1) % INTERVAL]
        reused |= {steps[index] for index in continued}
    return frozenset(reused)


def _steps_of(expert: int, experts: Sequence[int]) -> list[int]:
    return [step for step, works in enumerate(experts) if works == expert]


def _stretch(ratios: Sequence[float], length: int) -> list[float]:
    """The ratios of as many steps, each the nearest of those that were measured."""
    if length == 1:
        return [ratios[-1]]
    scale = (len(ratios) - 1) / (length - 1)
    return [ratios[round(index * scale)] for index in range(length)]


class SkippableBlocks(torch.nn.ModuleList):
    """The blocks of a transformer, under their names; within a step, what stands between its input and its output."""

    def __init__(self, blocks: torch.nn.ModuleList) -> None:
        super().__init__(blocks)
        self._is_reused: bool | None = None
        # In a tuple: as an attribute it would be one of the modules.
        self._entry = (_Entry(),)
        self._residuals: list[torch.Tensor] = []
        self._call = 0

    @property
    def entry(self) -> torch.nn.Module:
        """What a forward calls before all blocks or in their place: where hooks on its input belong."""
        return self._entry[0]

    def begin(self, *, is_reused: bool) -> None:
        """A step begins; the calls in it come in the same order in every step."""
        self._is_reused, self._call = is_reused, 0

    @property
    def residuals(self) -> list[torch.Tensor]:
        """What the blocks added to their input, of every call of the last step that was computed."""
        return list(self._residuals)

    def forget(self) -> None:
        """Drop the residuals."""
        self._residuals = []

    def __iter__(self) -> Any:
        """The blocks; within a step with what keeps their residual, or stands in for them."""
        if self._is_reused is None:
            return super().__iter__()
        return iter((self.entry, self._reuse) if self._is_reused else (self.entry, *super().__iter__(), self._keep))

    def _keep(self, hidden: torch.Tensor, *_: Any) -> torch.Tensor:
        residual = hidden - self._entry[0].take()
        self._residuals[self._call : self._call + 1] = [residual]
        self._call += 1
        return hidden

    def _reuse(self, hidden: torch.Tensor, *_: Any) -> torch.Tensor:
        self._entry[0].take()
        self._call += 1
        return hidden + self._residuals[self._call - 1]


class _Entry(torch.nn.Module):
    """Notes the input of the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self._hidden: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor, *_: Any) -> torch.Tensor:
        self._hidden = hidden
        return hidden

    def take(self) -> torch.Tensor:
        """The input, once."""
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return hidden
