"""Run by torchrun on four ranks: decode latents in tiles on two of them, then three, then all, and keep the pixels.

Each number of ranks is a group of its own, so that one start is enough. The last case has a rank without enough memory.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine import load
from engine.decode import decode_in_tiles
from engine.mesh import Ranks
from engine.tiles import decode_tiles
from tests.engine.ours import AUTOENCODERS, limit_memory, some_latents, tiled_pixels

WORLDS = (2, 3, 4)
# The last tiles of "odd" are one or two cells narrow, less than what overlaps.
SIZES = {"even": (96, 160), "odd": (112, 144), "one row": (32, 144)}
# As small as TI2V's autoencoder allows: 4 x 4 cells.
SIDE = 64
# Wide enough for each rank of two to have a whole tile of either side.
WIDE, WIDE_SIDES = (32, 448), (256, 128)
SHORT = "one rank is short of memory"


def main(models: Path, folder: Path) -> None:
    """Every world, one after the other."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for world in WORLDS:
        if rank < world:
            store = dist.FileStore(str(folder / f"store {world}"), world)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
            run(models, folder, Ranks(rank=rank, world_size=world, device=torch.device("cpu")))


def run(models: Path, folder: Path, ranks: Ranks) -> None:
    """Every case on these ranks."""
    for name in AUTOENCODERS:
        vae = load.load_vae(models / name)
        for case, size in SIZES.items():
            with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
                tiles = decode_tiles(vae, some_latents(vae, *size), side=SIDE, ranks=ranks, folder=Path(scratch))
                keep(vae, tiles, folder / f"{name} {case} {ranks.world_size}.pt", ranks)
    if ranks.rank == 1:
        limit_memory(vae, pixels=WIDE[0] * WIDE_SIDES[1])
    with tempfile.TemporaryDirectory() as scratch:
        latents = some_latents(vae, *WIDE)
        tiles = decode_in_tiles(vae, latents, side=WIDE_SIDES[0], ranks=ranks, folder=Path(scratch))
        assert tiles.side == WIDE_SIDES[1]
        keep(vae, tiles, folder / f"{SHORT} {ranks.world_size}.pt", ranks)
    ranks.close()


def keep(vae: Any, tiles: Any, path: Path, ranks: Ranks) -> None:
    """The reporter has all tiles."""
    if ranks.is_reporter:
        torch.save(tiled_pixels(vae, tiles), path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
