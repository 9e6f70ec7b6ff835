"""First frame: a picture becomes latents, on one rank, for all.

In: a picture of the video's size, the reporter's autoencoder. Out: its latents on every rank, equal bit for bit to
those of diffusers' WanImageToVideoPipeline.

Shapes: b batch (1), c channels (colour, then latent), f frames (all, then latent), h and w (pixels, then cells).
"""

from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.mesh import Ranks


def encode(vae: Any, rgb: Image.Image | None, *, num_frames: int, ranks: Ranks) -> torch.Tensor:
    """The latents of a video of `num_frames`, the first one the picture and the others grey.

    All ranks must call it; only the reporter has the autoencoder and the picture.
    """
    return ranks.share_tensor(_encode(vae, rgb, num_frames, ranks.device) if ranks.is_reporter else None)


@torch.no_grad()
def _encode(vae: Any, rgb: Image.Image | None, num_frames: int, device: torch.device) -> torch.Tensor:
    assert rgb is not None
    vae.to(device)
    unit_hwc = torch.from_numpy(np.asarray(rgb).astype(np.float32) / 255.0)
    picture_bcfhw = (2.0 * unit_hwc - 1.0).permute(2, 0, 1)[None, :, None].to(device)
    grey_bcfhw = picture_bcfhw.new_zeros(1, 3, num_frames - 1, rgb.height, rgb.width)
    latents_bcfhw = vae.encode(torch.cat([picture_bcfhw, grey_bcfhw], dim=2).to(vae.dtype)).latent_dist.mode()
    # The experts have the device to themselves until it decodes.
    vae.to("cpu")
    mean, std = (_per_channel(values, device) for values in (vae.config.latents_mean, vae.config.latents_std))
    # The inverse first, as the pipeline does: a division rounds differently.
    return (latents_bcfhw.to(torch.float32) - mean) * (1.0 / std)


def _per_channel(values: list[float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)
