"""Denoise: noise becomes latents, one Step at a time.

In: a denoiser and its feed, embeddings, where to start, a mesh. Out: a generator of Steps; whoever drives it may stop
between two of them. The numbers equal those of diffusers' pipelines bit for bit, and do not depend on how many ranks
the mesh has. It knows no model, no prompt, no picture, no job and no log.

Shapes: b batch (1), c latent channels, f latent frames, h and w latent cells, l text tokens, d text dimension.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from engine.cache import NoCache, StepCache
from engine.contract.models import ModelRow
from engine.mesh import Mesh, reshard
from engine.models.feed import Feed
from engine.models.wan import Denoiser


@dataclass(frozen=True, kw_only=True, slots=True)
class Embeddings:
    """What guides the denoising; without a negative there is one pass per step."""

    prompt_bld: torch.Tensor
    negative_bld: torch.Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Where the loop stands after `step` steps: all it needs to go on from there, on any number of ranks."""

    step: int
    latents_bcfhw: torch.Tensor
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """What the sampler remembers of earlier steps, as its attributes; empty before the first."""
    cache: Mapping[str, Any] = field(default_factory=dict)
    """What is cached of earlier steps."""
    is_whole: bool = True
    """False: the next steps reuse what is not in here, and nobody can go on from it."""

    def on(self, device: torch.device) -> "Snapshot":
        """The same, with every tensor on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, list):
                return [move(item) for item in value]
            return value.to(device) if isinstance(value, torch.Tensor) else value

        scheduler, cache = (
            {name: move(value) for name, value in memory.items()} for memory in (self.scheduler, self.cache)
        )
        return replace(self, latents_bcfhw=move(self.latents_bcfhw), scheduler=scheduler, cache=cache)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One denoising step that is done, of `steps`."""

    after: Snapshot
    steps: int
    seconds: float
    before_bcfhw: torch.Tensor
    velocity_bcfhw: torch.Tensor
    sigma: torch.Tensor

    @property
    def clean_bcfhw(self) -> torch.Tensor:
        """What the finished latents would be if the noise fell away at once as the expert predicts it."""
        return self.before_bcfhw - self.sigma.to(self.before_bcfhw.device) * self.velocity_bcfhw


def make_noise(
    row: ModelRow, *, width: int, height: int, num_frames: int, seed: int, device: torch.device
) -> torch.Tensor:
    """The latents to begin with; the same for a seed on every rank and every device, since a CPU draws them."""
    latent_frames = (num_frames - 1) // row.temporal_stride + 1
    shape = (1, row.latent_channels, latent_frames, height // row.spatial_stride, width // row.spatial_stride)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).to(device)


@torch.no_grad()
def denoise(
    model: Denoiser,
    embeddings: Embeddings,
    start: Snapshot,
    *,
    feed: Feed,
    scales: tuple[float, float],
    mesh: Mesh,
    cache: StepCache | None = None,
) -> Iterator[Step]:
    """Every step from `start` to latents that `feed` finishes. `scales`: guidance of the first and the second expert.

    All ranks of the mesh must take every step: they meet in it.
    """
    schedule, cache = model.schedule, cache or NoCache()
    cache.recall(start.cache)
    schedule.recall(start.scheduler)
    embeddings = _cast(embeddings, model.dtype)
    latents_bcfhw = start.latents_bcfhw
    active = None
    for step in range(start.step, schedule.steps):
        started = time.perf_counter()
        before_bcfhw, expert = latents_bcfhw, schedule.experts[step]
        if active is not None and expert != active:
            # It will not be used again: from now on the other one is whole.
            reshard(model.experts[active]())
        active = expert
        module = model.experts[expert]()
        predict = partial(
            _predict,
            module,
            feed.model_input(latents_bcfhw).to(model.dtype),
            feed.timestep(schedule.time(step)),
            embeddings,
            scale=scales[expert],
            mesh=mesh,
        )
        velocity_bcfhw = cache.velocity(predict, expert=module, step=step)
        latents_bcfhw = schedule.advance(before_bcfhw, velocity_bcfhw, step=step)
        mesh.ranks.settle()
        yield Step(
            after=Snapshot(
                step=step + 1,
                latents_bcfhw=latents_bcfhw,
                scheduler=schedule.memory(),
                cache=cache.memory(),
                is_whole=cache.is_whole(step + 1),
            ),
            steps=schedule.steps,
            seconds=time.perf_counter() - started,
            before_bcfhw=before_bcfhw,
            velocity_bcfhw=velocity_bcfhw,
            sigma=schedule.sigma(step),
        )


def _cast(embeddings: Embeddings, dtype: torch.dtype) -> Embeddings:
    negative = embeddings.negative_bld
    return Embeddings(
        prompt_bld=embeddings.prompt_bld.to(dtype), negative_bld=None if negative is None else negative.to(dtype)
    )


def _predict(
    expert: torch.nn.Module,
    input_bcfhw: torch.Tensor,
    timestep: torch.Tensor,
    embeddings: Embeddings,
    *,
    scale: float,
    mesh: Mesh,
) -> torch.Tensor:
    """The guided prediction: from the negative one, `scale` times the way to that of the prompt."""

    def branch(embeds_bld: torch.Tensor) -> torch.Tensor:
        return expert(
            hidden_states=input_bcfhw, timestep=timestep, encoder_hidden_states=embeds_bld, return_dict=False
        )[0]

    if embeddings.negative_bld is None:
        return branch(embeddings.prompt_bld)
    both = (embeddings.prompt_bld, embeddings.negative_bld)
    # Not batched: two rows in one pass need twice the memory, and round differently on some devices.
    positive, negative = mesh.gather_cfg(branch(both[mesh.cfg_rank])) if mesh.plan.cfg == 2 else map(branch, both)
    return negative + scale * (positive - negative)
