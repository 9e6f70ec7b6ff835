"""The other side of a comparison: the same video, made by diffusers' own pipeline."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
)
from PIL import Image

from engine.contract.request import Request
from tests.engine.ours import Sample, upload


def pipeline(request: Request, models: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """diffusers' pipeline of the same folder, with the request's flow shift; the autoencoder stays float32."""
    folder = models / request.model
    vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae")
    kind = WanImageToVideoPipeline if request.input.image else WanPipeline
    pipe = kind.from_pretrained(folder, vae=vae, dtype=dtype)
    pipe.scheduler = scheduler(pipe.scheduler.config, request)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.transformer, pipe.transformer_2, pipe.text_encoder):
        # Out of the mapped file, where a tensor may begin at any byte: a processor's sums round by their alignment.
        for parameter in part.parameters() if part else ():
            parameter.data = parameter.data.clone()
    return pipe


def scheduler(config: Any, request: Request) -> Any:
    """diffusers' scheduler of the request's sampler."""
    given = request.input
    if given.sampler == "euler":
        euler = FlowMatchEulerDiscreteScheduler(shift=given.flow_shift)
        # The pipeline cannot be told sigmas; those of the official code, which other pipelines of diffusers take too.
        sigmas = np.linspace(1, 1 / given.steps, given.steps)
        euler.set_timesteps = lambda _steps, device: type(euler).set_timesteps(euler, sigmas=sigmas, device=device)
        return euler
    kind = {"unipc": UniPCMultistepScheduler, "dpm++": DPMSolverMultistepScheduler}[given.sampler]
    return kind.from_config(config, flow_shift=given.flow_shift)


def arguments(request: Request) -> dict[str, Any]:
    """What the pipeline must be called with for this request."""
    given = request.input
    names = ("prompt", "negative_prompt", "width", "height", "num_frames", "guidance_scale", "guidance_scale_2")
    generator = torch.Generator("cpu").manual_seed(given.seed)
    image = {"image": Image.open(io.BytesIO(upload(request)))} if given.image else {}
    return {
        **{name: getattr(given, name) for name in names},
        **image,
        "num_inference_steps": given.steps,
        "generator": generator,
    }


def theirs(request: Request, models: Path, *, dtype: torch.dtype = torch.float32) -> Sample:
    """What diffusers' pipeline makes of a request."""
    kept = {}

    def keep(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        kept.update(values)
        return values

    pipe = pipeline(request, models, dtype=dtype)
    pictures = pipe(**arguments(request), output_type="pil", callback_on_step_end=keep).frames[0]
    if request.input.image:
        # The callback sees latents before the pipeline puts the image's frame back into them.
        kept["latents"] = pipe(**arguments(request), output_type="latent").frames
    return Sample(latents=kept["latents"], frames=np.stack([np.asarray(picture) for picture in pictures]))
