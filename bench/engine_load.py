"""What it takes to load one expert on 2 and on 4 ranks: ours (each reads its shard) against from_pretrained on each.

A random transformer of over 700 million parameters, float32 on disk, bfloat16 in memory; files in the page cache. Host
memory is the peak of anonymous memory, summed over the ranks, in multiples of the bfloat16 weights; time is that of the
slowest rank, against from_pretrained. In turns; the worse number of ranks counts.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from engine import load
from engine.contract.models import CATALOG
from engine.contract.plan import Plan
from engine.mesh import Ranks, divide
from engine.models import wan
from tests.ranks import on_ranks

SHAPE: dict[str, Any] = {"num_attention_heads": 16, "attention_head_dim": 96, "ffn_dim": 6144, "num_layers": 20}
ROW = replace(CATALOG["tiny-t2v"], num_heads=16, num_layers=20, dtype="bfloat16")
NAME = "transformer"
RANKS = (2, 4)
RUNS = 2
GOALS = (1.1, 0.75)


def build(folder: Path) -> tuple[int, int]:
    """Write the transformer, in several files as the real ones; its parameters and its bytes in bfloat16."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(**SHAPE, text_dim=512, rope_max_seq_len=64)
    transformer.save_pretrained(folder / NAME, max_shard_size="800MB")
    made = wan.make_expert(ROW, folder, NAME)
    parameters = list(made.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


def ours(folder: Path, ranks: Ranks) -> Any:
    plan = Plan(
        num_nodes=1, num_processes=ranks.world_size, cfg=1, ring=1, ulysses=ranks.world_size, shard=ranks.world_size
    )
    expert = wan.make_expert(ROW, folder, NAME)
    load.place(expert, ROW, divide(ranks, plan))
    return wan.read_weights(expert, folder / NAME)


def theirs(folder: Path, _ranks: Ranks) -> Any:
    return WanTransformer3DModel.from_pretrained(folder, subfolder=NAME, dtype=torch.bfloat16)


def measured(make: Callable[[], Any], ranks: Ranks) -> tuple[float, int]:
    """Seconds, and the peak of anonymous memory above what it was before."""
    before, peak, is_over = anonymous_bytes(), [0], threading.Event()

    def sample() -> None:
        while not is_over.wait(0.005):
            peak[0] = max(peak[0], anonymous_bytes())

    ranks.highest(0)  # all begin together
    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.perf_counter()
    made = make()
    seconds = time.perf_counter() - started
    is_over.set()
    sampler.join()
    del made
    return seconds, max(peak[0], anonymous_bytes()) - before


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main() -> int:
    memory, times = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_parameters, num_bytes = build(folder)
        print(f"context: {num_parameters / 1e6:.0f} million parameters, {num_bytes / 2**20:.0f} MiB in bfloat16")
        on_ranks(1, lambda ranks: measured(lambda: theirs(folder, ranks), ranks))  # the page cache
        for num_ranks in RANKS:
            ratios = [turn(folder, num_ranks, num_bytes, is_ours_first=bool(number % 2)) for number in range(RUNS)]
            memory.append(statistics.median(ratio for ratio, _ in ratios))
            times.append(statistics.median(ratio for _, ratio in ratios))
    worst = (max(memory), max(times))
    is_ok = worst[0] <= GOALS[0] and worst[1] <= GOALS[1]
    print(
        f"engine_load {worst[0]:.2f}/{worst[1]:.2f} x(memory/time) <={GOALS[0]}/{GOALS[1]} {'ok' if is_ok else 'short'}"
    )
    return 0 if is_ok else 1


def turn(folder: Path, num_ranks: int, num_bytes: int, *, is_ours_first: bool) -> tuple[float, float]:
    """Our memory in multiples of the weights, and our time over theirs."""
    sides = {"ours": ours, "theirs": theirs}
    found = {}
    for side in sorted(sides, reverse=not is_ours_first):
        make = sides[side]
        results = on_ranks(num_ranks, lambda ranks, make=make: measured(lambda: make(folder, ranks), ranks))
        seconds, total = max(s for s, _ in results), sum(peak for _, peak in results)
        found[side] = (seconds, total / num_bytes)
        print(f"{num_ranks} ranks, {side}: {seconds:.2f} s, {total / num_bytes:.2f} x the weights", flush=True)
    return found["ours"][1], found["ours"][0] / found["theirs"][0]


if __name__ == "__main__":
    sys.exit(main())
