"""Schedule: the noise schedule of one video, and the sampler that walks along it.

In: the configuration in a model's folder, the request's sampler, shift and steps. Out: a Schedule, which takes steps
and whose memory of them can be carried to another process. The samplers are diffusers', for models that predict a flow:
`unipc` (UniPC, arXiv:2302.04867), `dpm++` (DPM-Solver++, arXiv:2211.01095) and `euler`. All walk along the sigmas of
the official code, to a thousandth: 1, (n - 1) / n, ..., 1 / n, shifted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from engine.contract.models import ModelRow

# What samplers carry from step to step, beside the timesteps that are set before the first one. Euler carries only
# where it is.
_MEMORY = ("model_outputs", "timestep_list", "lower_order_nums", "last_sample", "this_order", "_step_index")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The noise schedule of one video."""

    scheduler: Any
    """diffusers', with its timesteps set."""
    experts: tuple[int, ...]
    """Which expert works in each step."""

    @property
    def steps(self) -> int:
        """All of them."""
        return len(self.experts)

    def time(self, step: int) -> torch.Tensor:
        """What the experts are told of the time in a step."""
        time: torch.Tensor = self.scheduler.timesteps[step]
        return time

    def sigma(self, step: int) -> torch.Tensor:
        """The share of noise in the latents before a step."""
        sigma: torch.Tensor = self.scheduler.sigmas[step]
        return sigma

    def advance(self, latents_bcfhw: torch.Tensor, velocity_bcfhw: torch.Tensor, *, step: int) -> torch.Tensor:
        """The latents after `step`, given what the expert predicted of those before it."""
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            # It gives back the dtype of the prediction; latents stay in theirs, as with the other samplers.
            velocity_bcfhw = velocity_bcfhw.to(latents_bcfhw.dtype)
        after: torch.Tensor = self.scheduler.step(velocity_bcfhw, self.time(step), latents_bcfhw, return_dict=False)[0]
        return after

    def memory(self) -> dict[str, Any]:
        """What the sampler remembers of the steps so far; later steps do not change it."""
        found = {name: getattr(self.scheduler, name) for name in _MEMORY if hasattr(self.scheduler, name)}
        # The lists are shifted in place, what is in them is not changed.
        return {name: list(value) if isinstance(value, list) else value for name, value in found.items()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Have the sampler remember this; its own lists, as `memory` must not change."""
        for name, value in memory.items():
            setattr(self.scheduler, name, list(value) if isinstance(value, list) else value)


def make_schedule(
    config: Mapping[str, Any], row: ModelRow, *, sampler: str, flow_shift: float, steps: int, device: torch.device
) -> Schedule:
    """The schedule of so many steps with one of SAMPLERS, and with this shift in place of the configuration's."""
    scheduler = _SCHEDULERS[sampler]({**config, "flow_shift": flow_shift}, steps, device)
    # Told once, so that the scheduler does not look for it on the device in the first step.
    scheduler.set_begin_index(0)
    boundary = 0.0 if row.boundary is None else row.boundary * scheduler.config.num_train_timesteps
    # As numbers, once: asking a device which expert is next would make it wait in every step.
    return Schedule(scheduler=scheduler, experts=tuple(int(t < boundary) for t in scheduler.timesteps.tolist()))


def _unipc(config: Mapping[str, Any], steps: int, device: torch.device) -> Any:
    scheduler = UniPCMultistepScheduler.from_config(config)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def _dpm(config: Mapping[str, Any], steps: int, device: torch.device) -> Any:
    scheduler = DPMSolverMultistepScheduler.from_config(config)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def _euler(config: Mapping[str, Any], steps: int, device: torch.device) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=config["num_train_timesteps"], shift=config["flow_shift"]
    )
    # Its own choice ends at a thousandth: of four steps the last would be lost, and distilled models know others.
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device=device)
    return scheduler


_SCHEDULERS: dict[str, Callable[[Mapping[str, Any], int, torch.device], Any]] = {
    "unipc": _unipc,
    "euler": _euler,
    "dpm++": _dpm,
}
