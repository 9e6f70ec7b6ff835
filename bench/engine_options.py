"""What each choice for speed gains and changes (docs/engine.md, "Speed options"), where most of a step is computing.

One process, random weights, the same steps as chosen and plain, in turns. Per choice: the time of a step over the
plain one's (the first step, which compiles, is left out), the bytes of weights on the device over the plain ones, and
how far the latents are from the plain ones: the largest difference, the relative error in the Euclidean norm, and the
ratio of their range to the error (PSNR). The figures are how much time compiled layers take, how many bytes float8
takes, and what offload changes.

Without a GPU this shows what the choices change and that they work, not how much faster a GPU is. A processor's own
time is counted then, which others on the machine do not disturb; and host memory is the device's.
"""

import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.model import a_denoiser, a_transformer, some_embeddings, the_start
from engine import load, speed
from engine.contract.models import CATALOG
from engine.contract.speed import Speed
from engine.denoise import denoise
from engine.mesh import Mesh, Ranks, divide, join
from engine.models import wan
from engine.models.feed import from_text
from tests.engine.ours import ALONE

STEPS = 2
RUNS = 3
GOALS = (1.0, 0.6, 0.0)
# A layer at work, the next, and the last one until the device is done with it (engine/contract/memory.py).
LAYERS_ON_DEVICE = 3
OPTIONS = {
    "plain": Speed(attention="native"),
    "attention math": Speed(attention="math"),
    "compile": Speed(compile=True),
    "float8": Speed(weights_dtype="float8"),
    "offload": Speed(offload="always"),
    "compile, float8": Speed(compile=True, weights_dtype="float8"),
    "float8, offload": Speed(weights_dtype="float8", offload="always"),
}
ROW = replace(
    CATALOG["tiny-t2v"], num_heads=8, head_dim=48, ffn_dim=1024, num_layers=4, boundary=None, dtype="bfloat16"
)


def placed(folder: Path, ranks: Ranks, chosen: Speed) -> tuple[Any, Mesh]:
    """The transformer in `folder`, as chosen."""
    plan = speed.ready(replace(ALONE, speed=chosen), ROW, ranks.device)
    mesh = divide(ranks, plan)
    expert = wan.make_expert(ROW, folder, "transformer")
    load.place(expert, ROW, mesh)
    return wan.read_weights(expert, folder / "transformer"), mesh


def run(expert: Any, mesh: Mesh) -> tuple[float, torch.Tensor]:
    """Seconds per step but the first, and the latents."""
    device = mesh.ranks.device
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = the_start().on(device)
    model = replace(a_denoiser(expert, steps=STEPS + 1), dtype=getattr(torch, ROW.dtype))
    given = some_embeddings()
    given = replace(given, prompt_bld=given.prompt_bld.to(device), negative_bld=given.negative_bld.to(device))
    fed = from_text(start.latents_bcfhw, is_per_token=False)
    times, latents = [], start.latents_bcfhw
    for step in denoise(model, given, start, feed=fed, scales=(4.0, 4.0), mesh=mesh):
        times.append(clock())
        latents = step.after.latents_bcfhw
    return (times[-1] - times[0]) / STEPS, latents


def bytes_on_device(expert: Any, chosen: Speed) -> int:
    whole = sum(parameter.nbytes for parameter in expert.parameters())
    if not chosen.is_offloaded:
        return whole
    layers = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in expert.blocks]
    return whole - sum(layers) + LAYERS_ON_DEVICE * layers[0]


def main() -> int:
    ranks = join(rank=0, local_rank=0, world_size=1, num_threads=1)
    seconds: dict[str, list[float]] = {name: [] for name in OPTIONS}
    latents: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        a_transformer().save_pretrained(folder / "transformer")
        experts = {option: placed(folder, ranks, chosen) for option, chosen in OPTIONS.items()}
    sizes = {option: bytes_on_device(experts[option][0], chosen) for option, chosen in OPTIONS.items()}
    for turn in range(RUNS):
        for option in sorted(OPTIONS, reverse=bool(turn % 2)):
            taken, latents[option] = run(*experts[option])
            seconds[option].append(taken)
    print(f"context: torch {torch.__version__}, {os.cpu_count()} cores, one thread, {ranks.device.type}, {ROW.dtype}")
    print("context: option | step / plain | bytes / plain | max abs | relative | PSNR dB")
    rows = {option: figures(option, seconds, sizes, latents) for option in OPTIONS}
    value = (rows["compile"][0], rows["float8"][1], rows["offload"][2])
    is_ok = all(found <= goal for found, goal in zip(value, GOALS, strict=True))
    found, goal = ("/".join(f"{one:.3g}" for one in values) for values in (value, GOALS))
    print(
        f"engine_options {found} x(compiled_step/float8_bytes/offload_difference) <={goal} {'ok' if is_ok else 'short'}"
    )
    return 0 if is_ok else 1


def figures(
    option: str, seconds: dict[str, list[float]], sizes: dict[str, int], latents: dict[str, torch.Tensor]
) -> tuple[float, float, float]:
    """Time, bytes and largest difference, against the plain ones; all of them are printed."""
    plain = latents["plain"]
    step = statistics.median(one / other for one, other in zip(seconds[option], seconds["plain"], strict=True))
    size = sizes[option] / sizes["plain"]
    difference = latents[option] - plain
    largest = float(difference.abs().max())
    relative = float(difference.norm() / plain.norm())
    error = float(difference.square().mean().sqrt())
    psnr = 20 * math.log10(float(plain.max() - plain.min()) / error) if error else math.inf
    print(f"context: {option} | {step:.2f} | {size:.2f} | {largest:.2g} | {relative:.2g} | {psnr:.0f}")
    return step, size, largest


if __name__ == "__main__":
    sys.exit(main())
