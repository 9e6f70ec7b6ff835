"""What telling progress costs a run: the step loop with a reporter and its previews, and without.

Reporter, nats-server and store are real. Steps of some 40 ms are the hardest case: real ones take seconds, and are told
no more often. The two sides alternate, and the figure is the median of the pairs' ratios.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from bench.engine_eta import a_bus
from engine.adapters.bus import Bus
from engine.adapters.store import DirStore
from engine.mesh import divide, join
from engine.models import tiny
from engine.pace import Work
from engine.paces import Paces
from engine.preview import Previews
from engine.report import Reporter, Silence
from engine.voice import LogVoice
from tests.engine.ours import ALONE, a_video_request, our_model, our_steps
from tests.make import JOB, TENANT

GOAL = 1.01
MODEL = "tiny-t2v"
SIZE = {"width": 192, "height": 128, "num_frames": 9}
STEPS = 60
PAIRS = 15


def main() -> int:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, a_bus(Path(folder)) as (bus, _):
        tiny.build(Path(folder) / "models")
        loop = a_loop(Path(folder) / "models")
        store = DirStore(Path(folder) / "store")
        told(loop, bus, store)
        pairs = [pair(loop, bus, store, told_first=bool(turn % 2)) for turn in range(PAIRS)]
    ratios = sorted(on / off for on, off in pairs)
    ratio = statistics.median(ratios)
    on, off = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"context: {MODEL}, {STEPS} steps, {PAIRS} pairs; on {on:.3f} s, off {off:.3f} s")
    quartiles = f"{ratios[PAIRS // 4]:.4f} and {ratios[-PAIRS // 4]:.4f}"
    print(f"context: ratios from {ratios[0]:.3f} to {ratios[-1]:.3f}, quartiles {quartiles}")
    print(f"engine_progress {ratio:.4f} ratio <={GOAL} {'ok' if ratio <= GOAL else 'short'}")
    return 0 if ratio <= GOAL else 1


def pair(loop: Any, bus: Bus, store: DirStore, *, told_first: bool) -> tuple[float, float]:
    """Seconds with and without, the one right after the other."""
    if told_first:
        return told(loop, bus, store), loop(Silence())
    off = loop(Silence())
    return told(loop, bus, store), off


def told(loop: Any, bus: Bus, store: DirStore) -> float:
    work = Work(model=MODEL, world_size=1, steps=STEPS, num_tokens=1, num_pixels=1)
    voice = LogVoice(bus=bus, tenant=TENANT, job=JOB, attempt=1)
    paces, previews = Paces(store, "default/pace/bench.json"), Previews(store, "default/bench/a1/preview.jpg")
    reporter = Reporter(voice, work=work, paces=paces, previews=previews, device=join_alone().device)
    reporter.stage("denoising")
    seconds = loop(reporter)
    reporter.close()
    return seconds


def join_alone() -> Any:
    return join(rank=0, local_rank=0, world_size=1, num_threads=1)


def a_loop(models: Path) -> Any:
    request = a_video_request(MODEL, **SIZE, steps=STEPS)
    row, given, mesh = request.row, request.input, divide(join_alone(), ALONE)
    model = our_model(row, given, models, mesh)

    def loop(reporter: Reporter | Silence) -> float:
        """Seconds of all steps."""
        began = time.perf_counter()
        for step in our_steps(model, row, given, mesh):
            reporter.step(step.step, seconds=step.seconds, clean_bcfhw=step.clean_bcfhw)
        return time.perf_counter() - began

    return loop


if __name__ == "__main__":
    sys.exit(main())
