"""Run by torchrun on two ranks: denoise a request under each plan, and keep the latents of both ranks."""

import os
import sys
from itertools import product
from pathlib import Path

import torch

from engine.mesh import join
from tests.engine.ours import WAYS, a_video_request, our_latents
from tests.make import a_plan

PLANS = {"ulysses": a_plan(cfg=1, ulysses=2), "cfg": a_plan(cfg=2)}
INPUTS = {"guided": {}, "one pass": {"guidance_scale": 1.0}}


def main(models: Path, folder: Path) -> None:
    ranks = join(rank=int(os.environ["RANK"]), local_rank=int(os.environ["LOCAL_RANK"]), world_size=2, num_threads=1)
    for way, (name, image) in WAYS.items():
        for (plan_name, plan), (case, inputs) in product(PLANS.items(), INPUTS.items()):
            latents, _ = our_latents(a_video_request(name, **inputs, **image), models, ranks, plan)
            torch.save(latents, folder / f"{way} {plan_name} {case} {ranks.rank}.pt")
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
