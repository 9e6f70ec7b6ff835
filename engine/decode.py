"""Decode: latents become frames.

In: finished latents and the autoencoder. Out: frames of bytes, equal to WanPipeline's with output_type="pil".

Shapes: b batch (1), c channels (latent, then colour), f frames (latent, then all), h and w (cells, then pixels).
"""

from typing import Any

import numpy as np
import torch


@torch.no_grad()
def decode(vae: Any, latents_bcfhw: torch.Tensor) -> np.ndarray:
    """The video as bytes, [frames, height, width, 3]."""
    vae.to(latents_bcfhw.device)
    latents_bcfhw = latents_bcfhw.to(vae.dtype)
    # The inverse first and the division after it, as the pipeline does: latents * std rounds differently.
    inverse_std = 1.0 / _per_channel(vae.config.latents_std, latents_bcfhw)
    latents_bcfhw = latents_bcfhw / inverse_std + _per_channel(vae.config.latents_mean, latents_bcfhw)
    pixels_bcfhw = vae.decode(latents_bcfhw, return_dict=False)[0]
    unit_bcfhw = (pixels_bcfhw * 0.5 + 0.5).clamp(0, 1)
    frames_fhwc = (unit_bcfhw[0] * 255).round().to(torch.uint8).permute(1, 2, 3, 0)
    return frames_fhwc.contiguous().cpu().numpy()


def _per_channel(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1).to(like.device, like.dtype)
