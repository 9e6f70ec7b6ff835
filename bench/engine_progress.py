"""What telling progress costs a run: the step loop with a reporter and its previews, and without.

Reporter, nats-server and store are real. Steps of some 20 ms are the hardest case: real ones take seconds, and are told
no more often. The sides alternate; a step does not count in which the system took the processor away for somebody else
(an involuntary context switch; waiting for a thread of our own is a voluntary one, and counts). The figure is the mean
step with over the mean step without.
"""

import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from bench.engine_eta import a_bus
from engine.adapters.bus import Bus
from engine.adapters.store import DirStore
from engine.mesh import divide, join
from engine.models import tiny, wan
from engine.pace import Work
from engine.paces import Paces
from engine.preview import Previews
from engine.report import Reporter, Silence
from engine.voice import LogVoice
from tests.engine.ours import ALONE, a_video_request, our_model, our_steps
from tests.make import JOB, TENANT

GOAL = 1.01
MODEL = "tiny-t2v"
SIZE = {"width": 128, "height": 96, "num_frames": 9}
STEPS = 100
PAIRS = 30


def main() -> int:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, a_bus(Path(folder)) as (bus, _):
        tiny.build(Path(folder) / "models")
        loop = a_loop(Path(folder) / "models")
        store = DirStore(Path(folder) / "store")
        told(loop, bus, store)
        steps: dict[str, list[float]] = {"on": [], "off": []}
        for turn in range(PAIRS):
            for side in sorted(steps, reverse=bool(turn % 2)):
                steps[side] += told(loop, bus, store) if side == "on" else loop(Silence())
    on, off = (statistics.mean(steps[side]) for side in ("on", "off"))
    counted = ", ".join(f"{len(values)} {side}" for side, values in steps.items())
    print(f"context: {MODEL}, {PAIRS} x {STEPS} steps each, counted: {counted}")
    print(f"context: on {1000 * on:.3f} ms, off {1000 * off:.3f} ms a step")
    ratio = on / off
    print(f"engine_progress {ratio:.4f} ratio <={GOAL} {'ok' if ratio <= GOAL else 'short'}")
    return 0 if ratio <= GOAL else 1


def told(loop: Any, bus: Bus, store: DirStore) -> list[float]:
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

    def loop(reporter: Reporter | Silence) -> list[float]:
        """Seconds of the steps that nobody disturbed."""
        setting = {"sampler": given.sampler, "flow_shift": given.flow_shift, "steps": given.steps}
        fresh = replace(model, schedule=wan.load_schedule(row, models / row.name, **setting, device=mesh.ranks.device))
        seconds, began, switches = [], time.perf_counter(), disturbances()
        for step in our_steps(fresh, row, given, mesh):
            reporter.step(step.after.step, seconds=step.seconds, clean_bcfhw=step.clean_bcfhw)
            if disturbances() == switches:
                seconds.append(time.perf_counter() - began)
            began, switches = time.perf_counter(), disturbances()
        return seconds

    return loop


def disturbances() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


if __name__ == "__main__":
    sys.exit(main())
