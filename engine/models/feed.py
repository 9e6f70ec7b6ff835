"""Feed: how Wan's experts take a step's latents and time, which the step loop does not know.

In: the noise, an image's latents if there is one. Out: a Feed of one of four forms. A14B makes a video from text, or
with the image's mask and latents as further channels of every step; TI2V has a time per token, and holds the first
frame at time zero when it is an image's.

Shapes: b batch (1), c channels, f latent frames, h and w latent cells.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """What stands between the scheduler's latents and the experts; the same in every step."""

    model_input: Callable[[torch.Tensor], torch.Tensor]
    """What the experts see of latents."""
    timestep: Callable[[torch.Tensor], torch.Tensor]
    """What they are told of the time."""
    finish: Callable[[torch.Tensor], torch.Tensor]
    """What the latents of the last step still need."""


def from_text(noise_bcfhw: torch.Tensor, *, is_per_token: bool) -> Feed:
    """The feed of a video that starts from its prompt alone."""
    if is_per_token:
        _, _, frames, height, width = noise_bcfhw.shape
        num_tokens = frames * ((height + 1) // 2) * ((width + 1) // 2)
        # float32: what TI2V's time embedding is fed with.
        return Feed(model_input=_same, timestep=lambda t: t.to(torch.float32).expand(1, num_tokens), finish=_same)
    return Feed(model_input=_same, timestep=_one_time, finish=_same)


def num_image_frames(num_frames: int, *, is_per_token: bool) -> int:
    """How many frames are encoded of an image: A14B sees a whole video that is empty behind it."""
    return 1 if is_per_token else num_frames


def from_image(noise_bcfhw: torch.Tensor, image_bcfhw: torch.Tensor, *, mask_channels: int, is_per_token: bool) -> Feed:
    """The feed of a video that starts from an image, given its latents."""
    if is_per_token:
        return _held(noise_bcfhw, image_bcfhw)
    _, _, *size = image_bcfhw.shape
    mask_bcfhw = image_bcfhw.new_zeros(1, mask_channels, *size)
    mask_bcfhw[:, :, 0] = 1
    beside_bcfhw = torch.cat([mask_bcfhw, image_bcfhw], dim=1)
    return Feed(
        model_input=lambda latents_bcfhw: torch.cat([latents_bcfhw, beside_bcfhw], dim=1),
        timestep=_one_time,
        finish=_same,
    )


def _held(noise_bcfhw: torch.Tensor, image_bcfhw: torch.Tensor) -> Feed:
    """The first frame stays the image's, whatever the scheduler makes of it; its tokens are at time zero."""
    _, _, *size = noise_bcfhw.shape
    mask_bcfhw = noise_bcfhw.new_ones(1, 1, *size)
    mask_bcfhw[:, :, 0] = 0
    held_bcfhw = (1 - mask_bcfhw) * image_bcfhw
    tokens_fhw = mask_bcfhw[0, 0, :, ::2, ::2]

    def blend(latents_bcfhw: torch.Tensor) -> torch.Tensor:
        return held_bcfhw + mask_bcfhw * latents_bcfhw

    return Feed(model_input=blend, timestep=lambda t: (tokens_fhw * t).flatten()[None], finish=blend)


def _same(latents_bcfhw: torch.Tensor) -> torch.Tensor:
    return latents_bcfhw


def _one_time(t: torch.Tensor) -> torch.Tensor:
    return t.expand(1)
