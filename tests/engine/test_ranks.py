"""Many ranks give what one gives, whatever the plan; and a run that is not what its plan says is refused."""

from pathlib import Path

import pytest
import torch

from engine.contract.errors import JobFailed
from engine.contract.plan import Plan
from engine.mesh import Ranks, divide
from tests.engine.many_ranks import (
    CASES,
    OPTION_CASES,
    OPTIONS,
    Case,
    file_of,
    has_weights,
    latents,
    option_file,
    pairs,
    with_option,
)
from tests.engine.ours import ALONE
from tests.make import a_plan

MATRIX = [
    pytest.param(case, way, dtype, id=f"{case.name}-{way}-{dtype}") for case in CASES for way, dtype in pairs(case)
]


@pytest.mark.parametrize(("case", "way", "dtype"), MATRIX)
def test_many_ranks_equal_one(models: Path, ranks: Ranks, many_ranks: Path, case: Case, way: str, dtype: str) -> None:
    alone = latents(way, case.inputs, models, ranks, plan=case.alone, dtype=dtype)
    found = [torch.load(many_ranks / file_of(case, way, dtype, rank)) for rank in range(case.plan.world_size)]
    assert all(torch.equal(found[0], other) for other in found[1:])
    if dtype == "float32" and case.fp32_tolerance:
        assert (found[0] - alone).abs().max() <= case.fp32_tolerance
    else:
        assert torch.equal(found[0], alone)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_gives_the_same_on_two_ranks(models: Path, ranks: Ranks, many_ranks: Path, option: str) -> None:
    alone = with_option(option, models, ranks, plan=ALONE)
    for case in OPTION_CASES:
        for rank in range(case.plan.world_size):
            found = torch.load(many_ranks / option_file(case, option, rank))
            assert (found - alone).abs().max() <= case.fp32_tolerance, case.name


@pytest.mark.parametrize("case", [case for case in CASES if has_weights(case)], ids=lambda case: case.name)
def test_the_active_expert_is_whole_and_the_idle_one_is_sharded(many_ranks: Path, case: Case) -> None:
    shard = 1 / case.plan.shard
    for rank in range(case.plan.world_size):
        held = torch.load(many_ranks / f"{case.name}, weights, {rank}.pt")
        if case.plan.reshard:
            # A layer is dropped after its own forward; the outermost module, the last one, stays until the next.
            assert all(share < shard + 0.1 for pair in held for share in pair)
        else:
            assert held[0] == (1.0, pytest.approx(shard, abs=0.01))
            assert held[-1] == (pytest.approx(shard, abs=0.01), 1.0)


@pytest.mark.parametrize("plan", [a_plan(num_processes=4, ulysses=2), a_plan(num_processes=1, cfg=1)])
def test_a_run_of_another_size_than_its_plan_is_refused(plan: Plan) -> None:
    with pytest.raises(JobFailed) as refusal:
        divide(Ranks(rank=0, world_size=2, device=torch.device("cpu")), plan)
    assert (refusal.value.code, refusal.value.retryable) == ("plan_invalid", False)
