"""Which degrees a number of processes gets, and what makes a plan impossible."""

import json

import pytest

from engine.contract.errors import Invalid
from engine.contract.models import CATALOG, ModelRow
from engine.contract.plan import Plan, check, choose
from tests.make import a_plan

HEADS_40 = CATALOG["wan2.2-t2v-a14b"]
HEADS_24 = CATALOG["wan2.2-ti2v-5b"]
HEADS_4 = CATALOG["tiny-t2v"]


@pytest.mark.parametrize(
    ("row", "nodes", "processes", "degrees"),
    [
        (HEADS_40, 1, 1, (1, 1, 1)),
        (HEADS_40, 1, 2, (2, 1, 1)),
        (HEADS_40, 1, 4, (2, 1, 2)),
        (HEADS_40, 1, 5, (1, 1, 5)),
        (HEADS_40, 1, 8, (2, 1, 4)),
        (HEADS_40, 1, 10, (2, 1, 5)),
        (HEADS_40, 1, 16, (2, 1, 8)),
        (HEADS_40, 2, 1, (2, 1, 1)),
        (HEADS_40, 2, 3, (2, 3, 1)),
        (HEADS_40, 2, 8, (2, 1, 8)),
        (HEADS_40, 4, 8, (2, 2, 8)),
        (HEADS_24, 1, 1, (1, 1, 1)),
        (HEADS_24, 1, 2, (2, 1, 1)),
        (HEADS_24, 1, 3, (1, 1, 3)),
        (HEADS_24, 1, 4, (2, 1, 2)),
        (HEADS_24, 1, 6, (2, 1, 3)),
        (HEADS_24, 1, 8, (2, 1, 4)),
        (HEADS_24, 2, 8, (2, 1, 8)),
        (HEADS_24, 3, 8, (2, 3, 4)),
        (HEADS_4, 1, 1, (1, 1, 1)),
        (HEADS_4, 1, 2, (2, 1, 1)),
        (HEADS_4, 1, 4, (2, 1, 2)),
        (HEADS_4, 1, 8, (2, 1, 4)),
        (HEADS_4, 2, 8, (2, 2, 4)),
    ],
)
def test_processes_go_to_cfg_then_to_heads_of_one_node_then_to_a_ring(
    row: ModelRow, nodes: int, processes: int, degrees: tuple[int, int, int]
) -> None:
    plan = choose(row, num_nodes=nodes, num_processes=processes)

    assert (plan.cfg, plan.ring, plan.ulysses) == degrees


@pytest.mark.parametrize(
    ("row", "processes"), [(HEADS_40, 3), (HEADS_40, 6), (HEADS_40, 7), (HEADS_4, 3), (HEADS_4, 6), (HEADS_24, 5)]
)
def test_one_node_whose_processes_cannot_share_the_heads_is_refused(row: ModelRow, processes: int) -> None:
    with pytest.raises(Invalid, match="these process counts fit: 1, 2, ") as caught:
        choose(row, num_nodes=1, num_processes=processes)

    assert [problem.rule for problem in caught.value.problems] == ["degrees"]


def test_a_refusal_names_only_counts_that_do_fit() -> None:
    with pytest.raises(Invalid) as caught:
        choose(HEADS_40, num_nodes=1, num_processes=3)

    named = [int(count) for count in str(caught.value).rpartition(": ")[2].split(", ")]
    assert {choose(HEADS_40, num_nodes=1, num_processes=count).world_size for count in named} == set(named)


@pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)
def test_every_chosen_plan_passes_the_check(row: ModelRow) -> None:
    for nodes in range(1, 5):
        for processes in range(1, 17):
            try:
                plan = choose(row, num_nodes=nodes, num_processes=processes)
            except Invalid:
                continue
            check(plan, row)
            assert plan.world_size == nodes * processes


@pytest.mark.parametrize(
    ("plan", "rules"),
    [
        (a_plan(num_processes=3, cfg=3), {"cfg"}),
        (a_plan(cfg=1), {"product"}),
        (a_plan(num_processes=4, ulysses=4), {"product"}),
        (a_plan(num_processes=6, ulysses=3), {"heads"}),
        (a_plan(num_nodes=2, num_processes=2, cfg=1, ulysses=4), {"node"}),
        (a_plan(shard=3), {"shard"}),
        (a_plan(num_processes=7, ulysses=3, shard=2), {"product", "heads", "node", "shard"}),
        (a_plan(ulysses=0), {"positive"}),
        (a_plan(shard=0), {"positive"}),
        (a_plan(num_processes=-2, cfg=-2), {"positive"}),
    ],
)
def test_a_plan_that_cannot_run_is_refused_with_its_rules(plan: Plan, rules: set[str]) -> None:
    with pytest.raises(Invalid) as caught:
        check(plan, HEADS_4)

    assert {problem.rule for problem in caught.value.problems} == rules


def test_a_plan_made_by_hand_may_use_what_choose_would_not() -> None:
    check(a_plan(num_processes=8, cfg=1, ring=4, ulysses=2, shard=8), HEADS_4)


def test_a_plan_survives_the_way_through_json() -> None:
    plan = a_plan(num_nodes=2, num_processes=8, ulysses=8, shard=16)

    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
