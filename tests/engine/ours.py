"""Our side of a comparison: a small video, made by the engine."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from engine import decode, denoise, load
from engine.contract.models import ModelRow
from engine.contract.plan import Plan
from engine.contract.request import Input, Request
from engine.latents import Run, Stages, make_latents
from engine.mesh import Mesh, Ranks, divide
from engine.models.wan import Denoiser
from engine.report import Silence
from engine.stop import Stop
from engine.tiles import Tiles
from tests.make import a_plan, a_request, an_input

ALONE = a_plan(num_processes=1, cfg=1)


@dataclass(frozen=True)
class Sample:
    latents: torch.Tensor
    frames: np.ndarray


def a_video_request(model: str, **inputs: Any) -> Request:
    """A request that takes a fraction of a second."""
    small = {"width": 64, "height": 64, "num_frames": 5, "steps": 4, "seed": 7, "flow_shift": 3.0}
    return a_request(model=model, input=an_input(**{**small, **inputs}))


def our_latents(request: Request, models: Path, ranks: Ranks, plan: Plan = ALONE) -> tuple[torch.Tensor, Any]:
    """What the engine denoises for a request, and the autoencoder."""
    return make_latents(a_run(request, models, ranks, plan))


def a_run(request: Request, models: Path, ranks: Ranks, plan: Plan = ALONE, **over: Any) -> Run:
    """A run that nobody stops and that leaves no checkpoint."""
    mesh, stages = divide(ranks, plan), Stages(Silence())
    parts = {"mesh": mesh, "stages": stages, "stop": Stop(), "checkpoints": None, **over}
    return Run(request=request, folder=models / request.model, **parts)


def our_model(row: ModelRow, given: Input, models: Path, mesh: Mesh) -> Denoiser:
    """The model of a request, on these ranks."""
    return load.start(row, models / row.name, flow_shift=given.flow_shift, steps=given.steps, mesh=mesh).denoiser


def our_steps(model: Denoiser, row: ModelRow, given: Input, mesh: Mesh) -> Iterator[denoise.Step]:
    """The steps of a request, with embeddings that no prompt gives: enough to compare numbers."""
    prompt, negative = (torch.ones(1, 512, 64) * value for value in (1.0, -1.0))
    embeddings = denoise.Embeddings(prompt_bld=prompt, negative_bld=negative if given.guidance_scale > 1 else None)
    size = {"width": given.width, "height": given.height, "num_frames": given.num_frames}
    noise = denoise.make_noise(row, **size, seed=given.seed, device=mesh.ranks.device)
    start = denoise.Snapshot(step=0, latents_bcfhw=noise)
    return denoise.denoise(model, embeddings, start, scales=(given.guidance_scale, 3.0), mesh=mesh)


def ours(request: Request, models: Path, ranks: Ranks) -> Sample:
    """What the engine makes of a request."""
    latents, vae = our_latents(request, models, ranks)
    return Sample(latents=latents, frames=np.concatenate(list(decode.decode(vae, latents))))


def torchrun(num_processes: int, *arguments: str) -> list[str]:
    """The command line of `num_processes` ranks on this machine."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0")
    return [*launch, f"--nproc-per-node={num_processes}", *arguments]


def some_latents(vae: Any, height: int, width: int, num_frames: int = 5) -> torch.Tensor:
    """Latents of a video of this size, the same ones on every call."""
    ratio = vae.spatial_compression_ratio
    shape = (1, vae.config.z_dim, (num_frames - 1) // 4 + 1, height // ratio, width // ratio)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def limit_memory(vae: Any, *, pixels: int, after: int = 0) -> None:
    """A device with memory for frames of `pixels`; larger ones fail, the first `after` of them excepted."""
    num_larger = 0

    def refuse(_decoder: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal num_larger
        height, width = inputs[0].shape[-2:]
        if height * width * vae.spatial_compression_ratio**2 > pixels:
            num_larger += 1
            if num_larger > after:
                raise torch.OutOfMemoryError(f"{height} x {width} cells are too many")

    vae.decoder.register_forward_pre_hook(refuse)


def tiled_pixels(vae: Any, tiles: Tiles) -> torch.Tensor:
    """The video of these tiles, in the form of AutoencoderKLWan.decode."""
    pixels = torch.cat(list(tiles.blended(vae)), dim=2)
    return (unpatchify(pixels, vae.config.patch_size) if vae.config.patch_size else pixels).clamp(-1, 1)
