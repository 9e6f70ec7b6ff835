"""Our side of a comparison: a small video, made by the engine."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import decode, image
from engine.contract.artifact import Artifact
from engine.contract.models import CATALOG
from engine.contract.plan import Plan
from engine.contract.request import Request
from engine.image import Picture
from engine.mesh import Mesh, Ranks, divide
from engine.models import tiny
from engine.report import Silence
from engine.worker import Stages, make_latents
from tests.make import a_plan, a_request, an_input
from tests.pictures import a_file, a_picture

ALONE = a_plan(num_processes=1, cfg=1)
IMAGE = {"image": "picture.png"}
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    **{name: (name, {}) for name in tiny.ROWS if CATALOG[name].image != "required"},
    **{f"{name} from an image": (name, IMAGE) for name in tiny.ROWS if CATALOG[name].image != "none"},
}
"""Every way to make a video: a model, and what its input must have."""


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


def a_mesh(request: Request, ranks: Ranks, plan: Plan = ALONE) -> Mesh:
    """The mesh that the worker would make for this request."""
    given = request.input
    num_tokens = request.row.num_tokens(width=given.width, height=given.height, num_frames=given.num_frames)
    return divide(ranks, plan, num_tokens=num_tokens)


def our_latents(
    request: Request, models: Path, ranks: Ranks, plan: Plan = ALONE, file: bytes | None = None
) -> tuple[torch.Tensor, Any]:
    """What the engine denoises for a request, and the autoencoder."""
    picture, body, size = None, file or upload(request), (request.input.width, request.input.height)
    if request.input.image and ranks.is_reporter:
        read = Artifact.of(body, key=request.input.image, content_type="image/png")
        picture = Picture(rgb=image.read(body, size=size), upload=read)
    mesh = a_mesh(request, ranks, plan)
    return make_latents(request, models, picture=picture, mesh=mesh, stages=Stages(Silence()))


def ours(request: Request, models: Path, ranks: Ranks, file: bytes | None = None) -> Sample:
    """What the engine makes of a request."""
    latents, vae = our_latents(request, models, ranks, file=file)
    return Sample(latents=latents, frames=decode.decode(vae, latents))


def torchrun(num_processes: int, *arguments: str) -> list[str]:
    """The command line of `num_processes` ranks on this machine."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0")
    return [*launch, f"--nproc-per-node={num_processes}", *arguments]
