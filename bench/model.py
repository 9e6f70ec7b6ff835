"""A model in memory, of the real classes, larger than the tiny ones: most of its time is computing, on one core too."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from engine.denoise import Embeddings, Snapshot, Step, denoise
from engine.mesh import Mesh
from engine.models.feed import from_text
from engine.models.schedule import Schedule
from engine.models.wan import Denoiser

TEXT_DIM = 64
# 13 latent frames of 12 x 12 patches: 1,872 tokens, a second of computing per step on one core.
LATENTS = (1, 16, 13, 24, 24)


def a_transformer() -> WanTransformer3DModel:
    """One expert, the same on every call."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=8,
        attention_head_dim=48,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=1024,
        num_layers=4,
        rope_max_seq_len=64,
    )
    return transformer.eval().requires_grad_(requires_grad=False)


def a_denoiser(transformer: Any, *, steps: int) -> Denoiser:
    """A denoiser of one expert, at the beginning of its schedule."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    schedule = Schedule(scheduler=scheduler, experts=(0,) * steps)
    return Denoiser(experts={0: lambda: transformer}, dtype=torch.float32, schedule=schedule, expand_timesteps=False)


def some_embeddings() -> Embeddings:
    """Of a prompt and a negative prompt."""
    prompt, negative = torch.randn(2, 1, 512, TEXT_DIM, generator=torch.Generator().manual_seed(1)).unbind(0)
    return Embeddings(prompt_bld=prompt, negative_bld=negative)


def take_steps(transformer: Any, start: Snapshot, *, steps: int, mesh: Mesh) -> Iterator[Step]:
    """The steps after `start`, of `steps` in all."""
    model = a_denoiser(transformer, steps=steps)
    fed = from_text(start.latents_bcfhw, is_per_token=False)
    return denoise(model, some_embeddings(), start, feed=fed, scales=(4.0, 4.0), mesh=mesh)


def the_start() -> Snapshot:
    """Noise."""
    return Snapshot(step=0, latents_bcfhw=torch.randn(LATENTS, generator=torch.Generator().manual_seed(2)))
