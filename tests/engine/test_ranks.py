"""Two ranks give what one gives, bit for bit; and what they cannot divide is refused before anything is loaded."""

from pathlib import Path

import pytest
import torch

from engine.contract.errors import JobFailed
from engine.contract.plan import Plan
from engine.mesh import Ranks, divide
from tests.engine.ours import WAYS, a_video_request, our_latents
from tests.engine.two_ranks import INPUTS, PLANS
from tests.make import a_plan


def a_pair() -> Ranks:
    return Ranks(rank=0, world_size=2, device=torch.device("cpu"))


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_equal_one(models: Path, ranks: Ranks, two_ranks: Path, way: str, plan: str, inputs: str) -> None:
    name, image = WAYS[way]
    alone, _ = our_latents(a_video_request(name, **INPUTS[inputs], **image), models, ranks)
    for rank in range(2):
        assert torch.equal(torch.load(two_ranks / f"{way} {plan} {inputs} {rank}.pt"), alone)


def test_a_sequence_that_does_not_divide_is_refused() -> None:
    with pytest.raises(JobFailed, match="27 tokens, which 2 ranks") as refusal:
        divide(a_pair(), a_plan(cfg=1, ulysses=2), num_tokens=27)
    assert (refusal.value.code, refusal.value.retryable) == ("input_invalid", False)


@pytest.mark.parametrize(
    "plan", [a_plan(cfg=1, ring=2), a_plan(shard=2), a_plan(num_processes=4, ulysses=2), a_plan(num_processes=1, cfg=1)]
)
def test_a_plan_that_the_engine_cannot_run_is_refused(plan: Plan) -> None:
    with pytest.raises(JobFailed) as refusal:
        divide(a_pair(), plan, num_tokens=24)
    assert (refusal.value.code, refusal.value.retryable) == ("plan_invalid", False)
