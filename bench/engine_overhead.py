"""What our step loop costs on top of diffusers' own: both make the same latents, in turns, in one process.

The ratio of the medians of many short runs. It proves nothing about speed on a GPU; it shows that the loop, its mesh
and its generator add nothing to the same modules that could be measured.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from diffusers.utils import logging

from engine import denoise, load, text
from engine.contract.models import CATALOG
from engine.mesh import divide, join
from engine.models import feed, tiny, wan
from tests.engine.ours import ALONE, a_video_request

LIMIT = 1.02
# Alternating, so that a busy machine disturbs both sides alike; the median of this many leaves out its outliers.
RUNS = 25
SIZE = {"width": 256, "height": 256, "num_frames": 17}
STEPS = {"tiny-t2v": 6, "tiny-ti2v": 16}
SEED, SCALE, SHIFT = 7, 4.0, 5.0
PROMPT, NEGATIVE = "a cat walks on the beach", "static"


def main() -> int:
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        tiny.build(Path(folder))
        ratios = [measure(name, Path(folder)) for name in STEPS]
    print(f"context: torch {torch.__version__}, python {platform.python_version()}, {os.cpu_count()} cores")
    worst = max(ratios)
    print(f"engine_overhead {worst:.4f} ratio <={LIMIT} {'ok' if worst <= LIMIT else 'short'}")
    return 0 if worst <= LIMIT else 1


def measure(name: str, models: Path) -> float:
    """Our median over theirs."""
    sides = {"ours": ours(name, models), "theirs": theirs(name, models)}
    latents = {side: run() for side, run in sides.items()}
    assert torch.equal(latents["ours"], latents["theirs"])
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(RUNS):
        for side in sorted(sides, reverse=bool(turn % 2)):
            started = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - started)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    ratio = medians["ours"] / medians["theirs"]
    size = "x".join(map(str, SIZE.values()))
    print(f"context: {name} {size}, {STEPS[name]} steps, {RUNS} runs each, the latents are equal")
    print(f"context: {name} ours {medians['ours']:.3f} s, diffusers {medians['theirs']:.3f} s, ratio {ratio:.4f}")
    return ratio


def ours(name: str, models: Path) -> Callable[[], torch.Tensor]:
    row, folder = CATALOG[name], models / name
    ranks = join(rank=0, local_rank=0, world_size=1, num_threads=1)
    mesh = divide(ranks, ALONE)
    setting: dict[str, Any] = {"sampler": "unipc", "flow_shift": SHIFT, "steps": STEPS[name]}
    given = a_video_request(name, flow_shift=SHIFT, steps=STEPS[name]).input
    model = load.start(row, folder, given, mesh=mesh).denoiser
    parts = load.load_text_parts(row, folder, ranks=ranks)

    def run() -> torch.Tensor:
        prompt, negative = text.encode(parts, [PROMPT, NEGATIVE], ranks=ranks)
        noise = denoise.make_noise(row, **SIZE, seed=SEED, device=ranks.device)
        embeddings = denoise.Embeddings(prompt_bld=prompt, negative_bld=negative)
        fresh = replace(model, schedule=wan.load_schedule(row, folder, **setting, device=ranks.device))
        start = denoise.Snapshot(step=0, latents_bcfhw=noise)
        fed = feed.from_text(noise, is_per_token=model.expand_timesteps)
        *_, last = denoise.denoise(fresh, embeddings, start, feed=fed, scales=(SCALE, SCALE), mesh=mesh)
        return last.after.latents_bcfhw

    return run


def theirs(name: str, models: Path) -> Callable[[], torch.Tensor]:
    pipe = WanPipeline.from_pretrained(models / name)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=SHIFT)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.transformer, pipe.transformer_2, pipe.text_encoder):
        # Out of the mapped file: a processor's sums round by the alignment of their numbers; both sides must be equal.
        for parameter in part.parameters() if part else ():
            parameter.data = parameter.data.clone()

    def run() -> Any:
        return pipe(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            **SIZE,
            num_inference_steps=STEPS[name],
            guidance_scale=SCALE,
            generator=torch.Generator("cpu").manual_seed(SEED),
            output_type="latent",
        ).frames

    return run


if __name__ == "__main__":
    sys.exit(main())
