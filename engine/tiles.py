"""Tiles: a video whose frames do not fit the device is decoded in overlapping parts, dealt over ranks.

In: unscaled latents, the same on every rank, and the autoencoder. Out: on the reporter, frames with the overlaps
blended, equal bit for bit to AutoencoderKLWan.tiled_decode on one process. Tiles change the picture, since each is
decoded as if nothing were around it: they are for frames that do not fit, not for speed.

Decoded tiles wait in files: all frames of a video at once, in float32, would be gigabytes of a host's memory.

Shapes: b batch (1), c channels, f frames (latent or all), h and w (cells of latents or pixels of the decoder, of which
TI2V's autoencoder makes 2 x 2 of a video's each).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

from engine.mesh import Ranks

# Pixels; the quarter of each that overlaps is a whole number of latent cells in every model. Smaller tiles have more
# borders than inside, and take so little memory that something else must be wrong.
SIDES = (512, 256, 128)
# Eight share a frame of 1280 x 720 nearly evenly, and published decoders do not gain from more (TensorRT-LLM VisualGen:
# 0.83 s on 8 GPUs, 0.85 s on 16).
MAX_RANKS = 8
_OVERLAP = 4  # one part of so many


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """How a frame is cut into tiles, row by row; lengths in latent cells."""

    height: int
    width: int
    tile: int
    stride: int
    scale: int
    """Pixels that the decoder makes of a cell, each way."""

    @property
    def tops(self) -> range:
        """Where the rows of tiles begin."""
        return range(0, self.height, self.stride)

    @property
    def lefts(self) -> range:
        """Where the columns of tiles begin."""
        return range(0, self.width, self.stride)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top and left of every tile, in the order in which they are dealt."""
        return [(top, left) for top in self.tops for left in self.lefts]

    def pixels(self, number: int) -> tuple[int, int]:
        """Height and width of a decoded tile; those at the far edges are smaller."""
        top, left = self.corners[number]
        rows, columns = min(self.tile, self.height - top), min(self.tile, self.width - left)
        return rows * self.scale, columns * self.scale


def cut(vae: Any, latents_bcfhw: torch.Tensor, *, side: int) -> Grid:
    """Tiles of `side` pixels of the video, each of which overlaps the next by a quarter."""
    ratio = vae.spatial_compression_ratio
    tile = side // ratio
    assert side % ratio == 0
    assert tile % _OVERLAP == 0
    return Grid(
        height=latents_bcfhw.shape[-2],
        width=latents_bcfhw.shape[-1],
        tile=tile,
        stride=tile - tile // _OVERLAP,
        scale=ratio // (vae.config.patch_size or 1),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """Every tile of a video in a file, decoded but not blended."""

    side: int
    grid: Grid
    folder: Path
    chunks: tuple[int, ...]
    """Frames that each latent frame became."""
    channels: int

    def blended(self, vae: Any) -> Iterator[torch.Tensor]:
        """What the decoder makes of each latent frame as a whole, one after the other."""
        first = 0
        for frames in self.chunks:
            yield self._blend(vae, range(first, first + frames))
            first += frames

    def _blend(self, vae: Any, frames: range) -> torch.Tensor:
        grid, columns = self.grid, len(self.grid.lefts)
        overlap, stride = (grid.tile - grid.stride) * grid.scale, grid.stride * grid.scale
        strips: list[torch.Tensor] = []
        above: list[torch.Tensor] = []
        for row in range(len(grid.tops)):
            tiles = [self.read(row * columns + column, frames) for column in range(columns)]
            for column, tile in enumerate(tiles):
                # In place, from above first: what is blended goes on into the next tiles, as in diffusers.
                if above:
                    vae.blend_v(above[column], tile, overlap)
                if column:
                    vae.blend_h(tiles[column - 1], tile, overlap)
            strips.append(torch.cat([tile[..., :stride, :stride] for tile in tiles], dim=-1))
            above = tiles
        return torch.cat(strips, dim=-2)[..., : grid.height * grid.scale, : grid.width * grid.scale]

    def write(self, number: int, pieces: Iterable[torch.Tensor]) -> None:
        """Keep a tile, given as the pieces (bcfhw) that follow each other in time."""
        with self._path(number).open("wb") as file:
            for piece in pieces:
                piece[0].transpose(0, 1).cpu().contiguous().numpy().tofile(file)

    def read(self, number: int, frames: range) -> torch.Tensor:
        """These frames of a tile, bcfhw."""
        height, width = self.grid.pixels(number)
        size = self.channels * height * width
        values = np.fromfile(
            self._path(number), np.float32, count=len(frames) * size, offset=frames.start * size * np.float32().nbytes
        )
        piece_fchw = torch.from_numpy(values).view(len(frames), self.channels, height, width)
        return piece_fchw.transpose(0, 1).unsqueeze(0)

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.side}-{number}.tile"


def deal(grid: Grid, *, rank: int, world_size: int) -> range:
    """The tiles of one rank: every so many-th."""
    hands = min(world_size, MAX_RANKS)
    return range(rank, len(grid.corners), hands) if rank < hands else range(0)


def decode_tiles(vae: Any, latents_bcfhw: torch.Tensor, *, side: int, ranks: Ranks, folder: Path) -> Tiles:
    """All tiles on the reporter, in `folder`; another rank has only its own. All ranks must call it.

    Raises torch.OutOfMemoryError on every rank if a tile did not fit on one of them.
    """
    later = 2 ** sum(vae.config.temperal_downsample)
    tiles = Tiles(
        side=side,
        grid=cut(vae, latents_bcfhw, side=side),
        folder=folder,
        chunks=(1, *[later] * (latents_bcfhw.shape[2] - 1)),
        channels=vae.config.out_channels,
    )
    try:
        for number in deal(tiles.grid, rank=ranks.rank, world_size=ranks.world_size):
            tiles.write(number, _decode_tile(vae, latents_bcfhw, tiles.grid, number))
    except torch.OutOfMemoryError:
        num_short = 1
    else:
        num_short = 0
    # Outside the except: while it is handled, the error holds what did not fit.
    if ranks.highest(num_short):
        raise torch.OutOfMemoryError(f"tiles of {side} pixels do not fit the memory of every device")
    _gather(tiles, ranks)
    return tiles


def run_decoder(vae: Any, cells: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """What the decoder makes of latent frames that follow each other; it remembers the frames before in a cache."""
    cache = [None] * sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
    for number, frame_bcfhw in enumerate(cells):
        yield vae.decoder(frame_bcfhw, feat_cache=cache, feat_idx=[0], first_chunk=number == 0)


def _decode_tile(vae: Any, latents_bcfhw: torch.Tensor, grid: Grid, number: int) -> Iterator[torch.Tensor]:
    top, left = grid.corners[number]
    tile_bcfhw = latents_bcfhw[..., top : top + grid.tile, left : left + grid.tile]
    return run_decoder(vae, map(vae.post_quant_conv, tile_bcfhw.split(1, dim=2)))


def _gather(tiles: Tiles, ranks: Ranks) -> None:
    """Send this rank's tiles to the reporter; on the reporter, take everybody's. One piece at a time, in one order."""
    if not ranks.is_reporter:
        for number in deal(tiles.grid, rank=ranks.rank, world_size=ranks.world_size):
            for piece in _pieces(tiles, number):
                dist.send(piece.contiguous().to(ranks.device), dst=0)
        return
    for other in range(1, ranks.world_size):
        for number in deal(tiles.grid, rank=other, world_size=ranks.world_size):
            tiles.write(number, _receive(tiles, number, src=other, device=ranks.device))


def _pieces(tiles: Tiles, number: int) -> Iterator[torch.Tensor]:
    first = 0
    for frames in tiles.chunks:
        yield tiles.read(number, range(first, first + frames))
        first += frames


def _receive(tiles: Tiles, number: int, *, src: int, device: torch.device) -> Iterator[torch.Tensor]:
    for frames in tiles.chunks:
        piece = torch.empty((1, tiles.channels, frames, *tiles.grid.pixels(number)), device=device)
        dist.recv(piece, src=src)
        yield piece
