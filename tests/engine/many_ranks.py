"""Denoise under every plan on real ranks, and keep the latents of each: arguments: MODELS DIR.

A process of its own: the ranks are forked from it, and the tests' own process has other threads.
"""

import sys
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from engine.contract.plan import Plan
from engine.contract.speed import Speed
from engine.mesh import Ranks, divide
from tests.engine.ours import ALONE, WAYS, a_video_request, our_model, our_parts, our_steps
from tests.make import a_plan
from tests.ranks import on_ranks

# 3 x 3 patches in 3 latent frames: 27 tokens, which neither 2 nor 4 ranks can share evenly.
ODD = {"width": 96, "height": 96, "num_frames": 9}


@dataclass(frozen=True)
class Case:
    """One plan, for one kind of input."""

    name: str
    plan: Plan
    inputs: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    ways: tuple[str, ...] = tuple(WAYS)
    fp32_tolerance: float = 0.0

    @property
    def alone(self) -> Plan:
        """What one rank does that gives the same: all but compiling, which rounds otherwise."""
        return replace(ALONE, speed=replace(self.plan.speed, compile=False))


def pairs(case: Case) -> list[tuple[str, str]]:
    """The ways and dtypes of a case: a model that is the same with an image has it in float32 alone."""
    return [(way, dtype) for way, dtype in product(case.ways, case.dtypes) if not WAYS[way][1] or dtype == "float32"]


def on(num_processes: int, **degrees: Any) -> Plan:
    return a_plan(num_processes=num_processes, **{"cfg": 1, **degrees})


# One model for what a layer does, whatever it makes.
TEXT = ("tiny-t2v",)
# Sharded float32: an unsharded layer is a view into one buffer, and a processor's sums round by the alignment of it.
SHARDED = 2e-5

CASES = [
    Case("cfg2", on(2, cfg=2)),
    Case("ulysses2", on(2, ulysses=2)),
    Case("ring2", on(2, ring=2)),
    Case("fsdp2", on(2, ulysses=2, shard=2), fp32_tolerance=SHARDED),
    Case("fsdp2 by layer", on(2, cfg=2, shard=2, reshard=True), fp32_tolerance=SHARDED),
    Case("ulysses2, odd", on(2, ulysses=2), inputs=ODD),
    Case("ring2, odd", on(2, ring=2), inputs=ODD),
    Case("cfg2, one pass", on(2, cfg=2), inputs={"guidance_scale": 1.0}, dtypes=("float32",)),
    Case("ulysses3", on(3, ulysses=3)),
    Case("ring3, odd", on(3, ring=3), inputs=ODD, dtypes=("float32",)),
    Case("cfg2 x ulysses2", on(4, cfg=2, ulysses=2)),
    Case("cfg2 x ulysses2, odd", on(4, cfg=2, ulysses=2), inputs=ODD, dtypes=("float32",)),
    Case("ring2 x ulysses2, odd", on(4, ring=2, ulysses=2), inputs=ODD),
    Case("cfg2 x ulysses2 x fsdp4", on(4, cfg=2, ulysses=2, shard=4), fp32_tolerance=SHARDED),
    Case("cfg2 x ring2 x hsdp2", on(4, cfg=2, ring=2, shard=2), fp32_tolerance=SHARDED),
    Case("offload x ulysses2", on(2, ulysses=2, speed=Speed(offload="always")), ways=TEXT),
    Case("math x ring2, odd", on(2, ring=2, speed=Speed(attention="math")), inputs=ODD, ways=TEXT),
    Case("float8 x cfg2", on(2, cfg=2, speed=Speed(weights_dtype="float8")), ways=TEXT),
    Case(
        "float8 x ulysses2 x fsdp2",
        on(2, ulysses=2, shard=2, speed=Speed(weights_dtype="float8")),
        ways=TEXT,
        fp32_tolerance=SHARDED,
    ),
    Case(
        "float8 x fsdp2 by layer",
        on(2, cfg=2, shard=2, reshard=True, speed=Speed(weights_dtype="float8")),
        ways=TEXT,
        fp32_tolerance=SHARDED,
    ),
    Case(
        "compiled x ulysses2 x fsdp2",
        on(2, ulysses=2, shard=2, speed=Speed(compile=True)),
        dtypes=("float32",),
        ways=TEXT,
        fp32_tolerance=SHARDED,
    ),
]


OPTIONS: dict[str, dict[str, Any]] = {
    "magcache": {"cache": "magcache"},
    "taylorseer": {"cache": "taylorseer"},
    "loras": {"loras": [{"name": "ink"}]},
}
"""Options of a request whose numbers differ from those of a plain one."""
OPTION_CASES = [
    Case("options, cfg2", on(2, cfg=2)),
    Case("options, ulysses2", on(2, ulysses=2)),
    # Four times the steps of the other cases, and what rounding gives is continued.
    Case("options, fsdp2 by layer", on(2, ulysses=2, shard=2, reshard=True), fp32_tolerance=SHARDED * 10),
]
"""Plans under which each of them is computed."""


def option_file(case: Case, option: str, rank: int) -> str:
    return f"{case.name}, {option}, {rank}.pt"


def file_of(case: Case, way: str, dtype: str, rank: int) -> str:
    return f"{case.name}, {way}, {dtype}, {rank}.pt"


def latents(way: str, inputs: dict[str, Any], models: Path, ranks: Ranks, *, plan: Plan, dtype: str) -> torch.Tensor:
    """What these ranks denoise."""
    model, image = WAYS[way]
    request = a_video_request(model, **inputs, **image)
    row, mesh = replace(request.row, dtype=dtype), divide(ranks, plan)
    *_, last = our_steps(our_model(row, request.input, models, mesh), row, request.input, mesh)
    return last.after.latents_bcfhw


def weights_held(models: Path, ranks: Ranks, plan: Plan) -> list[tuple[float, float]]:
    """After each step: the share of its weights that this rank holds, of the first expert and of the second."""
    request = a_video_request("tiny-t2v", steps=8)
    mesh = divide(ranks, plan)
    model = our_model(request.row, request.input, models, mesh)
    return [
        (share_held(model.experts[0]()), share_held(model.experts[1]()))
        for _ in our_steps(model, request.row, request.input, mesh)
    ]


def share_held(expert: torch.nn.Module) -> float:
    parameters = list(expert.parameters())
    here = [parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in parameters]
    return sum(part.numel() for part in here) / sum(parameter.numel() for parameter in parameters)


def with_option(option: str, models: Path, ranks: Ranks, *, plan: Plan) -> torch.Tensor:
    """What these ranks denoise of a request with one of OPTIONS."""
    request = a_video_request("tiny-t2v", **OPTIONS[option], steps=16)
    mesh = divide(ranks, plan)
    parts = our_parts(request, models, mesh)
    *_, last = our_steps(parts.denoiser, request.row, request.input, mesh, cache=parts.cache)
    return last.after.latents_bcfhw


def main(models: Path, folder: Path) -> None:
    for world_size in sorted({case.plan.world_size for case in CASES}):
        on_ranks(world_size, lambda ranks: compute_all(models, folder, ranks))


def has_weights(case: Case) -> bool:
    """Whether the weights that each rank holds are kept too."""
    return case.plan.shard > 1 and case.plan.speed == Speed()


def compute_all(models: Path, folder: Path, ranks: Ranks) -> None:
    for case in CASES:
        if case.plan.world_size == ranks.world_size:
            compute(case, models, folder, ranks)
            if has_weights(case):
                torch.save(weights_held(models, ranks, case.plan), folder / f"{case.name}, weights, {ranks.rank}.pt")
    for case in OPTION_CASES:
        if case.plan.world_size == ranks.world_size:
            for option in OPTIONS:
                latents_bcfhw = with_option(option, models, ranks, plan=case.plan)
                torch.save(latents_bcfhw, folder / option_file(case, option, ranks.rank))


def compute(case: Case, models: Path, folder: Path, ranks: Ranks) -> None:
    for way, dtype in pairs(case):
        result = latents(way, case.inputs, models, ranks, plan=case.plan, dtype=dtype)
        torch.save(result, folder / file_of(case, way, dtype, ranks.rank))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
