"""What a second rank gains: the same steps on one rank and on two, by cfg and by Ulysses, in turns.

One thread per rank, gloo, on a size where computing dominates. The latents of all sides are equal, bit for bit. The
figure is the gain of cfg and of Ulysses. What two cores gain at most is measured beside it, by two runs that share
nothing: cores may be two threads of one.
"""

import os
import statistics
import sys
import time
from typing import Any

import torch

from bench.model import a_transformer, take_steps, the_start
from engine import sequence
from engine.mesh import Ranks, divide
from tests.engine.ours import ALONE
from tests.make import a_plan
from tests.ranks import on_ranks

STEPS = 3
RUNS = 3
GOALS = (1.8, 1.6)
SIDES = {"one": ALONE, "apart": ALONE, "cfg": a_plan(cfg=2), "ulysses": a_plan(cfg=1, ulysses=2)}


def run(ranks: Ranks, side: str) -> tuple[float, torch.Tensor]:
    """Seconds per step but the first, and the latents."""
    if side == "apart":
        ranks = Ranks(rank=0, world_size=1, device=ranks.device)
    mesh = divide(ranks, SIDES[side])
    transformer = a_transformer()
    if mesh.sequence:
        sequence.split(transformer, mesh.sequence)
    seconds, last = [], None
    for step in take_steps(transformer, the_start(), steps=STEPS + 1, mesh=mesh):
        seconds.append(step.seconds)
        last = step.after.latents_bcfhw
    return statistics.mean(seconds[1:]), last


def main() -> int:
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    latents: dict[str, Any] = {}
    for turn in range(RUNS):
        for side in sorted(SIDES, reverse=bool(turn % 2)):
            started = time.perf_counter()
            num_ranks = 1 if side == "one" else 2
            found = on_ranks(num_ranks, lambda ranks, side=side: run(ranks, side))
            seconds[side].append(max(value for value, _ in found))
            latents[side] = found[0][1]
            print(
                f"{side}: {seconds[side][-1]:.3f} s per step, {time.perf_counter() - started:.1f} s in all", flush=True
            )
    assert all(torch.equal(latents["one"], latents[side]) for side in SIDES)
    gains = [
        statistics.median(one / two for one, two in zip(seconds["one"], seconds[side], strict=True))
        for side in ("cfg", "ulysses")
    ]
    is_ok = all(gain >= goal for gain, goal in zip(gains, GOALS, strict=True))
    both = statistics.median(2 * one / two for one, two in zip(seconds["one"], seconds["apart"], strict=True))
    print(f"context: torch {torch.__version__}, {os.cpu_count()} cores, the latents are equal")
    print(f"context: two processes that share nothing do {both:.2f} times the work of one here: no rank can gain more")
    goal, verdict = f">={GOALS[0]}/{GOALS[1]}", "ok" if is_ok else "short"
    print(f"engine_parallel {gains[0]:.2f}/{gains[1]:.2f} x(cfg/ulysses) {goal} {verdict}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
