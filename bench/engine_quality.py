"""What the options of a request cost and change: the same noise with each, against the plain way, in one process.

Per option: the time of a step over a plain one (the whole video's over the whole plain one's where the number of steps
differs), and how far the latents are from the plain ones: relative L2, and PSNR over their range. The weights are
random: the differences show that an option does something and how much of the arithmetic it replaces, not what a
viewer would see of a trained model. The figure is the time that MagCache and TaylorSeer leave of a plain run.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.model import TEXT_DIM, a_transformer, some_embeddings
from engine.cache import MagCache, NoCache, SkippableBlocks, StepCache, TaylorSeer, magcache_steps, taylorseer_steps
from engine.calibrate import Calibration
from engine.contract.lora import Lora
from engine.contract.magnitudes import Magnitudes
from engine.contract.models import CATALOG
from engine.denoise import Embeddings, Snapshot, denoise
from engine.mesh import divide, join
from engine.models import lora
from engine.models.feed import from_text
from engine.models.schedule import make_schedule
from engine.models.wan import Denoiser
from tests.engine.ours import ALONE

STEPS, FEW = 20, 4
GOAL = 0.75
# 5 latent frames of 12 x 12 patches: 720 tokens.
LATENTS = (1, 16, 5, 24, 24)
CONFIG = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000}
RANK = 16


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to take the steps."""

    sampler: str = "unipc"
    steps: int = STEPS
    shift: float = 5.0
    scale: float = 4.0
    cache: Callable[[], StepCache] = NoCache
    loras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    seconds: list[float]
    latents: torch.Tensor

    @property
    def total(self) -> float:
        """The first step allocates."""
        return statistics.mean(self.seconds[1:]) * len(self.seconds)


def take(way: Way) -> Result:
    ranks = join(rank=0, local_rank=0, world_size=1, num_threads=1)
    transformer = a_transformer()
    if way.loras:
        lora.add(way.loras, transformer)
    if not isinstance(way.cache(), NoCache | TaylorSeer):
        transformer.blocks = SkippableBlocks(transformer.blocks)
    noise = torch.randn(LATENTS, generator=torch.Generator().manual_seed(2))
    model = a_denoiser(transformer, way)
    embeddings = some_embeddings()
    if way.scale == 1:
        embeddings = Embeddings(prompt_bld=embeddings.prompt_bld, negative_bld=None)
    steps = denoise(
        model,
        embeddings,
        Snapshot(step=0, latents_bcfhw=noise),
        feed=from_text(noise, is_per_token=False),
        scales=(way.scale, way.scale),
        cache=way.cache(),
        mesh=divide(ranks, ALONE),
    )
    seconds, last = [], noise
    for step in steps:
        seconds.append(step.seconds)
        last = step.after.latents_bcfhw
    return Result(seconds, last)


def a_denoiser(transformer: Any, way: Way) -> Denoiser:
    # A row of one expert.
    row = CATALOG["tiny-ti2v"]
    setting = {"sampler": way.sampler, "flow_shift": way.shift, "steps": way.steps, "device": torch.device("cpu")}
    schedule = make_schedule(CONFIG, row, **setting)
    return Denoiser(experts={0: lambda: transformer}, dtype=torch.float32, schedule=schedule, expand_timesteps=False)


def calibrated() -> Magnitudes:
    """The magnitudes of this model; what is left out of a run is decided by them."""
    calibration = Calibration()
    take(Way(cache=lambda: calibration))
    return Magnitudes(ratios=(tuple(calibration.ratios[0]),), retention=(0.2,))


def some_loras() -> dict[str, Any]:
    """Of all attention layers, from a file."""
    transformer, generator = a_transformer(), torch.Generator().manual_seed(4)
    names = [
        name.removesuffix(".weight") for name, p in transformer.named_parameters() if ".to_" in name and p.ndim == 2
    ]
    sides = {"A": lambda w: (RANK, w.shape[1]), "B": lambda w: (w.shape[0], RANK)}
    tensors = {
        f"transformer.{name}.lora_{side}.weight": torch.randn(
            shape(transformer.get_parameter(f"{name}.weight")), generator=generator
        )
        * 0.02
        for name in names
        for side, shape in sides.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ink.safetensors"
        save_file(tensors, file)
        return dict(lora.read([(Lora(name="ink", scale=1.0), file)], transformer))


def main() -> int:
    magnitudes, one_expert = calibrated(), [0] * STEPS
    mag, taylor = magcache_steps(magnitudes, one_expert), taylorseer_steps(one_expert)
    ways = {
        "sampler euler": Way(sampler="euler"),
        "sampler dpm++": Way(sampler="dpm++"),
        "flow_shift 12": Way(shift=12.0),
        "guidance_scale 1": Way(scale=1.0),
        f"cache magcache, {len(mag)} of {STEPS} steps reused": Way(cache=lambda: MagCache(mag)),
        f"cache taylorseer, {len(taylor)} of {STEPS} steps reused": Way(
            cache=lambda: TaylorSeer(taylor, experts=one_expert)
        ),
        "loras, one of all attention layers": Way(loras=some_loras()),
        "lightning's schedule, no LoRA": Way(sampler="euler", steps=FEW, scale=1.0),
    }
    plain, again = take(Way()), take(Way())
    assert torch.equal(plain.latents, again.latents)
    base = min(plain.total, again.total)
    tokens = LATENTS[2] * LATENTS[3] * LATENTS[4] // 4
    print(
        f"context: torch {torch.__version__}, {os.cpu_count()} cores, one thread, {tokens} tokens, {TEXT_DIM} of text"
    )
    print(f"context: plain is unipc, {STEPS} steps of two passes: {base:.2f} s; random weights")
    ratios = {}
    for name, way in ways.items():
        result = take(way)
        ratios[name.split(",")[0]] = result.total / base
        print(
            f"context: {name}: time {result.total / base:.3f}, {difference(result.latents, plain.latents)}", flush=True
        )
    values = (ratios["cache magcache"], ratios["cache taylorseer"])
    verdict = "ok" if max(values) <= GOAL else "short"
    print(f"engine_quality {values[0]:.2f}/{values[1]:.2f} x(magcache/taylorseer) <={GOAL}/{GOAL} {verdict}")
    return 0 if verdict == "ok" else 1


def difference(latents: torch.Tensor, plain: torch.Tensor) -> str:
    error = latents - plain
    relative = float(error.norm() / plain.norm())
    psnr = 10 * torch.log10((plain.max() - plain.min()) ** 2 / error.square().mean())
    return f"relative L2 {relative:.4f}, PSNR {float(psnr):.1f} dB"


if __name__ == "__main__":
    sys.exit(main())
