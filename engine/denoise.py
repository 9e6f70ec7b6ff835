"""Denoise: noise becomes latents, one Step at a time.

In: a denoiser and its feed, embeddings, noise, a mesh. Out: a generator of Steps; whoever drives it may stop between
two of them. The numbers equal those of diffusers' pipelines bit for bit, and do not depend on how many ranks the mesh
has. It knows no model, no prompt, no picture, no job and no log.

Shapes: b batch (1), c latent channels, f latent frames, h and w latent cells, l text tokens, d text dimension.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from engine.contract.models import ModelRow
from engine.mesh import Mesh
from engine.models.feed import Feed
from engine.models.wan import Denoiser


@dataclass(frozen=True, kw_only=True, slots=True)
class Embeddings:
    """What guides the denoising; without a negative there is one pass per step."""

    prompt_bld: torch.Tensor
    negative_bld: torch.Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One denoising step that is done, the `step`-th of `steps`."""

    step: int
    steps: int
    latents_bcfhw: torch.Tensor
    seconds: float


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
    noise_bcfhw: torch.Tensor,
    *,
    feed: Feed,
    steps: int,
    scales: tuple[float, float],
    mesh: Mesh,
) -> Iterator[Step]:
    """Every step from `noise_bcfhw` to latents that `feed` finishes. `scales`: guidance of the two experts.

    All ranks of the mesh must take every step: they meet in it.
    """
    scheduler = model.scheduler
    scheduler.set_timesteps(steps, device=noise_bcfhw.device)
    # Told once, so that the scheduler does not look for it on the device in the first step.
    scheduler.set_begin_index(0)
    boundary = None if model.boundary is None else model.boundary * scheduler.config.num_train_timesteps
    dtype = model.experts[0].dtype
    embeddings = _cast(embeddings, dtype)
    latents_bcfhw = noise_bcfhw
    # As Python numbers: asking a device which expert is next would make it wait in every step.
    for step, (t, number) in enumerate(zip(scheduler.timesteps, scheduler.timesteps.tolist(), strict=True), start=1):
        started = time.perf_counter()
        expert = 0 if boundary is None or number >= boundary else 1
        input_bcfhw = feed.model_input(latents_bcfhw).to(dtype)
        velocity_bcfhw = _predict(
            model.experts[expert], input_bcfhw, feed.timestep(t), embeddings, scale=scales[expert], mesh=mesh
        )
        latents_bcfhw = scheduler.step(velocity_bcfhw, t, latents_bcfhw, return_dict=False)[0]
        mesh.ranks.settle()
        yield Step(step=step, steps=steps, latents_bcfhw=latents_bcfhw, seconds=time.perf_counter() - started)


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
