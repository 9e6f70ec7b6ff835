"""What checkpoints cost a run, and what a run that goes on from one costs.

The same steps with and without a checkpoint every second to a directory, in turns: the ratio of the medians. Then a run
that is stopped half-way and one that goes on from its checkpoint, against an undisturbed one: the steps that were lost.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.model import a_transformer, take_steps, the_start
from engine.adapters.store import DirStore
from engine.checkpoint import Checkpoints
from engine.denoise import Snapshot
from engine.mesh import divide, join
from tests.engine.ours import ALONE

STEPS = 8
RUNS = 7
INTERVAL_S = 1.0
GOALS = (1.02, 1.0)


class Side:
    """Runs of the same steps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mesh = divide(join(rank=0, local_rank=0, world_size=1, num_threads=1), ALONE)
        self._transformer = a_transformer()

    def checkpoints(self, name: str) -> Checkpoints:
        return Checkpoints(DirStore(self._folder), name, identity="bench", interval_s=INTERVAL_S)

    def steps(self, start: Snapshot, checkpoints: Checkpoints | None, *, until: int = STEPS) -> Snapshot:
        at = start
        for step in take_steps(self._transformer, start, steps=STEPS, mesh=self._mesh):
            at = step.after
            if checkpoints:
                checkpoints.offer(at)
            if at.step == until:
                break
        return at


def seconds(call: object) -> float:
    started = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - started


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        side = Side(Path(name))
        whole = side.steps(the_start(), None)
        taken: dict[str, list[float]] = {"off": [], "on": []}
        for turn in range(RUNS):
            for kind in sorted(taken, reverse=bool(turn % 2)):
                checkpoints = side.checkpoints(f"{turn}") if kind == "on" else None
                taken[kind].append(seconds(lambda checkpoints=checkpoints: side.steps(the_start(), checkpoints)))
                if checkpoints:
                    assert checkpoints.newest() is not None
        ratio = statistics.median(on / off for on, off in zip(taken["on"], taken["off"], strict=True))
        step_s = statistics.median(taken["off"]) / STEPS
        lost = [(resume_s(side, whole, turn) - statistics.median(taken["off"])) / step_s for turn in range(RUNS)]
    print(f"context: {STEPS} steps of {step_s:.2f} s, a checkpoint every {INTERVAL_S:g} s")
    value = (ratio, statistics.median(lost))
    is_ok = value[0] <= GOALS[0] and value[1] <= GOALS[1]
    print(
        f"engine_checkpoint {value[0]:.3f}/{value[1]:.2f} x/steps(cost/lost) <={GOALS[0]}/{GOALS[1]:g} "
        f"{'ok' if is_ok else 'short'}"
    )
    return 0 if is_ok else 1


def resume_s(side: Side, whole: Snapshot, turn: int) -> float:
    """Seconds of half the steps, a drain, and the other half from the checkpoint; its end is that of a whole run."""
    started = time.perf_counter()
    side.checkpoints(f"resume {turn}").write(side.steps(the_start(), None, until=STEPS // 2))
    start = side.checkpoints(f"resume {turn}").newest()
    assert start is not None
    end = side.steps(start, None)
    taken = time.perf_counter() - started
    assert torch.equal(end.latents_bcfhw, whole.latents_bcfhw)
    return taken


if __name__ == "__main__":
    sys.exit(main())
