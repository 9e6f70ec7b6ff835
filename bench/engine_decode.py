"""What a second rank gains when a video is decoded in tiles: one rank and two make the same pixels, in turns.

One thread per rank, the tiles blended on the reporter. Whole frames are decoded too, for what tiles cost: they overlap
by a quarter each way. The dealing, the files and the messages are the engine's, the autoencoder is the tiny one.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from engine import load
from engine.mesh import Ranks, join
from engine.models import tiny
from engine.tiles import decode_tiles, run_decoder

GOAL = 1.6
# Alternating, and compared turn by turn: a busy machine disturbs neighbours alike.
RUNS = 7
NAME, HEIGHT, WIDTH, NUM_FRAMES, SIDE = "tiny-t2v", 192, 288, 5, 128


def main() -> int:
    if "RANK" in os.environ:
        return run_rank()
    with tempfile.TemporaryDirectory() as folder:
        tiny.build(Path(folder))
        launch = ("-m", "torch.distributed.run", "--standalone", "--max-restarts=0", "--nproc-per-node=2")
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launch, __file__, folder]
        said = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(said, end="")
    return 0 if said.split()[-1] == "ok" else 1


@torch.no_grad()
def run_rank() -> int:
    """One of two ranks; the reporter prints."""
    rank = int(os.environ["RANK"])
    ranks = join(rank=rank, local_rank=rank, world_size=2, num_threads=1)
    seconds = measure(ranks, Path(sys.argv[1]))
    ranks.close()
    if ranks.is_reporter:
        tell(seconds)
    return 0


def tell(seconds: dict[str, list[float]]) -> None:
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    print(f"context: torch {torch.__version__}, python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"context: {NAME} {WIDTH}x{HEIGHT}x{NUM_FRAMES}, tiles of {SIDE}, {RUNS} runs each, the pixels are equal")
    print("context: " + ", ".join(f"{side} {median:.3f} s" for side, median in medians.items()))
    print(f"context: on one rank tiles take {medians['one'] / medians['whole']:.2f} times what whole frames take")
    gain = statistics.median(one / two for one, two in zip(seconds["one"], seconds["two"], strict=True))
    print(f"engine_decode {gain:.2f} ratio >={GOAL} {'ok' if gain >= GOAL else 'short'}")


def measure(ranks: Ranks, models: Path) -> dict[str, list[float]]:
    """Seconds of each side, turn by turn; those of the reporter count."""
    vae = load.load_vae(models / NAME)
    shape = (1, vae.config.z_dim, (NUM_FRAMES - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    alone = Ranks(rank=0, world_size=1, device=ranks.device)

    def tiled(on: Ranks) -> torch.Tensor | None:
        with tempfile.TemporaryDirectory() as folder:
            tiles = decode_tiles(vae, latents, side=SIDE, ranks=on, folder=Path(folder))
            return torch.cat(list(tiles.blended(vae)), dim=2) if on.is_reporter else None

    def whole() -> torch.Tensor:
        return torch.cat(list(run_decoder(vae, vae.post_quant_conv(latents).split(1, dim=2))), dim=2)

    sides: dict[str, Callable[[], torch.Tensor | None]] = {"one": lambda: tiled(alone), "two": lambda: tiled(ranks)}
    sides["whole"] = whole
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    pixels = {}
    for turn in range(RUNS + 1):
        for side in sorted(sides, reverse=bool(turn % 2)):
            dist.barrier()
            started = time.perf_counter()
            if ranks.is_reporter or side == "two":
                pixels[side] = sides[side]()
            # The first turn is for what is made once.
            seconds[side] += [time.perf_counter() - started] if turn else []
    if ranks.is_reporter:
        assert torch.equal(pixels["one"], pixels["two"])
    return seconds


if __name__ == "__main__":
    sys.exit(main())
