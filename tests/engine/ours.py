"""Our side of a comparison: a small video, made by the engine."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from engine import decode, denoise, image, load
from engine.adapters.store import DirStore
from engine.cache import StepCache
from engine.checkpoint import Checkpoints
from engine.contract.artifact import Artifact
from engine.contract.models import CATALOG, ModelRow
from engine.contract.plan import Plan
from engine.contract.request import Input, Request
from engine.image import Picture
from engine.latents import Run, Stages, make_latents
from engine.mesh import Mesh, Ranks, divide
from engine.models import feed, tiny
from engine.models.wan import Denoiser
from engine.report import Silence
from engine.stop import Stop, Why
from engine.tiles import Tiles
from tests.make import a_plan, a_request, an_input
from tests.pictures import a_file, a_picture

ALONE = a_plan(num_processes=1, cfg=1)
IMAGE = {"image": "picture.png"}
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    **{name: (name, {}) for name in tiny.ROWS if CATALOG[name].image != "required"},
    **{f"{name} from an image": (name, IMAGE) for name in tiny.ROWS if CATALOG[name].image != "none"},
}
"""Every way to make a video: a model, and what its input must have."""
AUTOENCODERS = ("tiny-t2v", "tiny-ti2v")
"""One model of each kind of autoencoder."""


@dataclass(frozen=True)
class Sample:
    latents: torch.Tensor
    frames: np.ndarray


def a_video_request(model: str, **inputs: Any) -> Request:
    """A request that takes a fraction of a second."""
    small = {"width": 64, "height": 64, "num_frames": 5, "steps": 4, "seed": 7, "flow_shift": 3.0}
    return a_request(model=model, input=an_input(**{**small, **inputs}))


def upload(request: Request) -> bytes:
    """The file that a request's image names: of the video's shape, but larger."""
    return a_file(a_picture(request.input.width * 2, request.input.height * 2))


class Drain(Stop):
    """A run that is told to end after so many steps."""

    def __init__(self, *, after: int) -> None:
        super().__init__()
        self._left = after

    def why(self) -> Why:
        self._left -= 1
        return Why.DRAIN if self._left <= 0 else Why.NOT


def checkpoints(folder: Path) -> Checkpoints:
    """Those of one video; written when a run ends."""
    return Checkpoints(DirStore(folder), "checkpoints", identity="this video", interval_s=1000)


def our_latents(request: Request, models: Path, ranks: Ranks, **over: Any) -> tuple[torch.Tensor, Any]:
    """What the engine denoises for a request, and the autoencoder."""
    return make_latents(a_run(request, models, ranks, **over))


def a_run(request: Request, models: Path, ranks: Ranks, plan: Plan = ALONE, **over: Any) -> Run:
    """A run that nobody stops and that leaves no checkpoint."""
    mesh, stages = divide(ranks, plan), Stages(Silence())
    picture = a_read_picture(request, upload(request)) if request.input.image else None
    parts = {"mesh": mesh, "stages": stages, "stop": Stop(), "picture": picture, "checkpoints": None, **over}
    return Run(request=request, folder=models / request.model, **parts)


def a_read_picture(request: Request, file: bytes) -> Picture:
    """What the reporter makes of an upload."""
    read = Artifact.of(file, key=str(request.input.image), content_type="image/png")
    return Picture(rgb=image.read(file, size=(request.input.width, request.input.height)), upload=read)


def our_model(row: ModelRow, given: Input, models: Path, mesh: Mesh) -> Denoiser:
    """The model of a request, on these ranks."""
    return load.start(row, models / row.name, given, mesh=mesh).denoiser


def our_parts(request: Request, models: Path, mesh: Mesh) -> load.Parts:
    """What the engine loads for a request, on these ranks."""
    return load.start(request.row, models / request.model, request.input, mesh=mesh)


def our_steps(
    model: Denoiser, row: ModelRow, given: Input, mesh: Mesh, *, cache: StepCache | None = None
) -> Iterator[denoise.Step]:
    """The steps of a request, with embeddings that no prompt gives: enough to compare numbers."""
    prompt, negative = (torch.ones(1, 512, 64) * value for value in (1.0, -1.0))
    embeddings = denoise.Embeddings(prompt_bld=prompt, negative_bld=negative if given.guidance_scale > 1 else None)
    size = {"width": given.width, "height": given.height, "num_frames": given.num_frames}
    noise = denoise.make_noise(row, **size, seed=given.seed, device=mesh.ranks.device)
    start = denoise.Snapshot(step=0, latents_bcfhw=noise)
    fed = our_feed(model, row, given, noise)
    scales = (given.guidance_scale, 3.0)
    return denoise.denoise(model, embeddings, start, feed=fed, scales=scales, cache=cache, mesh=mesh)


def our_feed(model: Denoiser, row: ModelRow, given: Input, noise: torch.Tensor) -> feed.Feed:
    """The feed of a request, with latents that no picture gives."""
    is_per_token = model.expand_timesteps
    if given.image is None:
        return feed.from_text(noise, is_per_token=is_per_token)
    picture = noise.flip(-1)[:, :, : 1 if is_per_token else None]
    return feed.from_image(noise, picture, mask_channels=row.temporal_stride, is_per_token=is_per_token)


def block_calls(expert: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks of the expert that compute from now on, one entry per call."""
    calls: list[torch.nn.Module] = []
    for block in expert.blocks.children():
        block.register_forward_hook(lambda block, *_: calls.append(block))
    return calls


def ours(request: Request, models: Path, ranks: Ranks, **over: Any) -> Sample:
    """What the engine makes of a request."""
    latents, vae = our_latents(request, models, ranks, **over)
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
