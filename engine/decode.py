"""Decode: latents become frames, a few at a time.

In: finished latents and the autoencoder. Out: chunks of frames as bytes, each made when it is asked for, so that nobody
holds a video. They equal WanPipeline's with output_type="pil". Frames that the device has no memory for are decoded in
tiles (tiles.py), together on all ranks if that is known before, else by the reporter alone.

Shapes: b batch (1), c channels (latent, then colour), f frames (latent, then all), h and w (cells, then pixels).
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from engine.contract.errors import JobFailed
from engine.mesh import Ranks
from engine.tiles import SIDES, Tiles, decode_tiles, run_decoder

_log = logging.getLogger(__name__)

# Of a device's memory: the rest is for what is not counted, such as the workspace of convolutions and fragments.
_SHARE = 0.8
# Most that the decoder holds at once, its cache included: bytes / (pixels that it makes x decoder_base_dim x itemsize).
# Counted over live tensors of diffusers 0.42: 50.7 and 84.0; tests/engine/test_decode.py counts again.
_PLANES, _PLANES_RESIDUAL = 51, 85

Write = Callable[[Iterator[np.ndarray]], None]


@torch.no_grad()
def decode(vae: Any, latents_bcfhw: torch.Tensor) -> Iterator[np.ndarray]:
    """The video as bytes, in chunks of [frames, height, width, 3]: one frame, then four at a time."""
    # All frames at once and not one by one, as the pipeline does.
    cells_bcfhw = vae.post_quant_conv(_unscaled(vae, latents_bcfhw))
    for pixels_bcfhw in run_decoder(vae, cells_bcfhw.split(1, dim=2)):
        yield _to_bytes(vae, pixels_bcfhw)


@torch.no_grad()
def decode_in_tiles(vae: Any, latents_bcfhw: torch.Tensor, *, side: int, ranks: Ranks, folder: Path) -> Tiles:
    """Tiles of `side` pixels or, where those do not fit, of the largest smaller ones that do; kept in `folder`.

    All ranks must call it, also with the latents. Raises JobFailed when no tile fits.
    """
    latents_bcfhw = _unscaled(vae, latents_bcfhw)
    for smaller in (one for one in _sides(vae, latents_bcfhw) if one <= side):
        try:
            return decode_tiles(vae, latents_bcfhw, side=smaller, ranks=ranks, folder=folder)
        except torch.OutOfMemoryError as error:
            _log.warning("%s", error)
    height, width = _size(vae, latents_bcfhw)
    raise JobFailed(
        "out_of_memory",
        f"the device has not enough memory to decode frames of {width} x {height}, whole or in tiles down to "
        f"{SIDES[-1]} pixels; ask for smaller frames, or use a device with more memory",
        retryable=True,
    )


@torch.no_grad()
def film(vae: Any, latents_bcfhw: torch.Tensor, write: Write, *, tiles: Tiles | None, folder: Path) -> int:
    """Give all frames to `write`: those of `tiles`, or else decoded here. Returns the tiles' side, 0 for whole frames.

    After an out-of-memory `write` is called once more, with the frames from the first one on.
    """
    if tiles is None:
        try:
            write(decode(vae, latents_bcfhw))
        except torch.OutOfMemoryError as error:
            _log.warning("whole frames do not fit: %s", str(error).partition("\n")[0])
        else:
            return 0
        # The others have gone, since it was expected to fit.
        alone = Ranks(rank=0, world_size=1, device=latents_bcfhw.device)
        tiles = decode_in_tiles(vae, latents_bcfhw, side=SIDES[0], ranks=alone, folder=folder)
    write(_to_bytes(vae, pixels_bcfhw) for pixels_bcfhw in tiles.blended(vae))
    return tiles.side


def first_side(vae: Any, latents_bcfhw: torch.Tensor, *, memory_bytes: int | None) -> int:
    """How to decode with so much memory: 0 for whole frames if they fit, else the side of the largest tiles that do.

    None is a memory without a limit. The whole of it counts, not what is free: tiles change the picture, so that the
    answer must be the same on any number of ranks.
    """
    height, width = _size(vae, latents_bcfhw)
    sides = _sides(vae, latents_bcfhw)
    if memory_bytes is None or not sides or bytes_needed(vae, height=height, width=width) <= _SHARE * memory_bytes:
        return 0
    needs = {side: bytes_needed(vae, height=min(side, height), width=min(side, width)) for side in sides}
    return next((side for side, need in needs.items() if need <= _SHARE * memory_bytes), sides[-1])


def memory_of(device: torch.device) -> int | None:
    """The bytes that a device has; None for a processor, which can swap."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def bytes_needed(vae: Any, *, height: int, width: int) -> int:
    """An upper estimate of what decoding holds on the device at once, for frames or tiles of so many pixels."""
    config = vae.config
    planes = _PLANES_RESIDUAL if config.is_residual else _PLANES
    pixels = height * width // (config.patch_size or 1) ** 2
    weights = sum(parameter.nbytes for parameter in vae.parameters())
    return weights + planes * pixels * (config.decoder_base_dim or config.base_dim) * vae.dtype.itemsize


def _sides(vae: Any, latents_bcfhw: torch.Tensor) -> list[int]:
    """The tiles that are smaller than the frame, the largest first."""
    return [side for side in SIDES if side < max(_size(vae, latents_bcfhw))]


def _size(vae: Any, latents_bcfhw: torch.Tensor) -> tuple[int, int]:
    """Height and width of the video in pixels."""
    height, width = latents_bcfhw.shape[-2:]
    return height * vae.spatial_compression_ratio, width * vae.spatial_compression_ratio


def _unscaled(vae: Any, latents_bcfhw: torch.Tensor) -> torch.Tensor:
    """Latents as the autoencoder knows them, where they are; it follows them."""
    vae.to(latents_bcfhw.device)
    latents_bcfhw = latents_bcfhw.to(vae.dtype)
    # The inverse first and the division after it, as the pipeline does: latents * std rounds differently.
    inverse_std = 1.0 / _per_channel(vae.config.latents_std, latents_bcfhw)
    return latents_bcfhw / inverse_std + _per_channel(vae.config.latents_mean, latents_bcfhw)


def _per_channel(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1).to(like.device, like.dtype)


def _to_bytes(vae: Any, pixels_bcfhw: torch.Tensor) -> np.ndarray:
    if vae.config.patch_size:
        pixels_bcfhw = unpatchify(pixels_bcfhw, patch_size=vae.config.patch_size)
    unit_bcfhw = (pixels_bcfhw.clamp(-1, 1) * 0.5 + 0.5).clamp(0, 1)
    frames_fhwc = (unit_bcfhw[0] * 255).round().to(torch.uint8).permute(1, 2, 3, 0)
    return frames_fhwc.contiguous().cpu().numpy()
