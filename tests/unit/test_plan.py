"""Which degrees a number of processes gets, what makes a plan impossible, and what would fit in its place."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from engine.contract.errors import Invalid
from engine.contract.memory import estimate
from engine.contract.models import CATALOG, ModelRow
from engine.contract.plan import Plan, check, choose
from engine.contract.speed import Speed
from tests.make import a_plan

A14B, TI2V, TINY = (CATALOG[name] for name in ("wan2.2-t2v-a14b", "wan2.2-ti2v-5b", "tiny-t2v"))
rows = pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)

DEGREES = {
    (1, 1): (1, 1, 1),
    (1, 2): (2, 1, 1),
    (1, 3): (1, 1, 3),
    (1, 4): (2, 1, 2),
    (1, 5): (1, 1, 5),
    (1, 6): (2, 1, 3),
    (1, 7): (1, 1, 7),
    (1, 8): (2, 1, 4),
    (1, 16): (2, 1, 8),
    (2, 1): (2, 1, 1),
    (2, 3): (2, 1, 3),
    (2, 8): (2, 1, 8),
    (3, 1): (1, 3, 1),
    (3, 2): (2, 3, 1),
    (3, 3): (1, 3, 3),
    (3, 8): (2, 3, 4),
    (4, 8): (2, 2, 8),
}
"""(nodes, processes per node) -> (cfg, ring, ulysses), for 24 and for 40 heads."""
DEGREES_OF_4_HEADS = {
    **DEGREES,
    (1, 5): None,
    (1, 7): None,
    (1, 16): None,
    (2, 8): (2, 2, 4),
    (4, 8): (2, 4, 4),
}


def a_video(row: ModelRow, **over: Any) -> dict[str, Any]:
    """The row's default size."""
    return {"width": row.width.default, "height": row.height.default, "num_frames": row.num_frames.default, **over}


def pick(row: ModelRow, nodes: int, processes: int, *, memory: float = 0.0, **over: Any) -> Plan | None:
    """The plan for a video, or None when it is refused."""
    video = a_video(row, **over)
    try:
        return choose(row, num_nodes=nodes, num_processes=processes, gpu_memory_gib=memory, **video)
    except Invalid:
        return None


def refusal(row: ModelRow, nodes: int, processes: int, *, memory: float = 0.0) -> tuple[str, str]:
    """Rule and message of the one problem of a refused plan."""
    with pytest.raises(Invalid) as caught:
        choose(row, num_nodes=nodes, num_processes=processes, gpu_memory_gib=memory, **a_video(row))
    [problem] = caught.value.problems
    assert problem.pointer == "/plan"
    return problem.rule, problem.message


def named(message: str) -> set[tuple[int, int]]:
    """The nodes and GPUs that a refusal says would fit."""
    text = message.partition("that fit: ")[2]
    found = re.findall(r"(\d+) x (\d+)(?:-(\d+))?(?=[,;]|$)", text)
    return {(int(nodes), gpus) for nodes, low, high in found for gpus in range(int(low), int(high or low) + 1)}


@pytest.mark.parametrize(
    ("name", "counts", "degrees"),
    [
        ("wan2.2-t2v-a14b", (1, 8), (1, 1, 8)),
        ("wan2.2-ti2v-5b", (1, 8), (1, 1, 8)),
        ("wan2.2-t2v-a14b", (2, 8), (1, 2, 8)),
        ("tiny-t2v", (1, 2), (1, 1, 2)),
        # Four heads: what is left over computes the pass once more.
        ("tiny-t2v", (1, 8), (2, 1, 4)),
    ],
)
def test_without_a_negative_prompt_all_processes_share_the_one_pass(
    name: str, counts: tuple[int, int], degrees: tuple[int, int, int]
) -> None:
    row = CATALOG[name]
    plan = choose(row, num_nodes=counts[0], num_processes=counts[1], has_negative=False, **a_video(row))
    assert (plan.cfg, plan.ring, plan.ulysses) == degrees


@pytest.mark.parametrize("counts", DEGREES, ids=lambda counts: "x".join(map(str, counts)))
@rows
def test_processes_go_to_cfg_then_to_heads_of_one_node_then_to_a_ring(row: ModelRow, counts: tuple[int, int]) -> None:
    plan = pick(row, *counts)

    expected = (DEGREES_OF_4_HEADS if row.num_heads == 4 else DEGREES)[counts]
    assert (plan and (plan.cfg, plan.ring, plan.ulysses)) == expected


@pytest.mark.parametrize("memory", [0, 24, 80])
@rows
def test_every_chosen_plan_passes_the_check_and_fits(row: ModelRow, memory: int) -> None:
    for nodes in range(1, 5):
        for processes in range(1, 17):
            if plan := pick(row, nodes, processes, memory=memory):
                check(plan, row)
                assert plan.world_size == nodes * processes
                assert not memory or estimate(row, plan, **a_video(row)).peak_gib <= memory


@rows
def test_one_process_per_head_and_fewer_always_fit(row: ModelRow) -> None:
    assert all(pick(row, 1, processes) for processes in range(1, row.num_heads + 1))
    assert all(pick(row, nodes, processes) for nodes in (2, 3, 4) for processes in range(1, 9))


@pytest.mark.parametrize(
    ("row", "processes", "memory", "expected"),
    [
        (A14B, 1, 0, (1, False)),
        (A14B, 8, 0, (8, False)),
        (A14B, 3, 0, (3, False)),
        (TI2V, 2, 0, (2, False)),
        (TINY, 8, 0, (1, False)),
        (A14B, 8, 80, (8, False)),
        (A14B, 8, 48, (8, False)),
        (A14B, 8, 24, (8, True)),
        (A14B, 8, 16, None),
        (A14B, 1, 48, None),
        (A14B, 2, 48, (2, True)),
        (TI2V, 1, 24, (1, False)),
        (TI2V, 2, 20, (2, True)),
        (TINY, 2, 4, (1, False)),
        (TINY, 2, 2, None),
    ],
)
def test_a_node_holds_one_copy_of_real_weights_and_gathers_as_much_as_fits(
    row: ModelRow, processes: int, memory: float, expected: tuple[int, bool] | None
) -> None:
    plan = pick(row, 1, processes, memory=memory)

    assert (plan and (plan.shard, plan.reshard)) == expected


@pytest.mark.parametrize(
    ("row", "nodes", "processes", "memory", "rule"),
    [
        (TINY, 1, 5, 0, "degrees"),
        (TINY, 1, 10, 8, "degrees"),
        (A14B, 1, 1, 48, "memory"),
        (A14B, 1, 2, 24, "memory"),
        (A14B, 2, 2, 20, "memory"),
        (TI2V, 1, 1, 16, "memory"),
    ],
)
def test_a_refusal_names_exactly_the_counts_that_do_fit(
    row: ModelRow, nodes: int, processes: int, memory: float, rule: str
) -> None:
    found, message = refusal(row, nodes, processes, memory=memory)

    fitting = {(n, g) for n in range(1, 5) for g in range(1, 9) if pick(row, n, g, memory=memory)}
    assert found == rule
    assert named(message) == fitting != set()


def test_a_refusal_names_the_largest_usual_size_that_does_fit() -> None:
    # Between what 720p and what 480p need on two nodes of one, where nothing can be divided.
    needs = [
        estimate(A14B, a_plan(num_nodes=2, num_processes=1), width=width, height=height, num_frames=121).peak_gib
        for width, height in ((1280, 720), (832, 480))
    ]
    memory = sum(needs) / 2
    with pytest.raises(Invalid) as caught:
        choose(A14B, num_nodes=2, num_processes=1, width=1280, height=720, num_frames=121, gpu_memory_gib=memory)

    [size] = re.findall(r"; 2 x 1 would do for (\d+)x(\d+);", caught.value.problems[0].message)
    width, height = map(int, size)
    assert 832 * 480 <= width * height < 1280 * 720
    assert pick(A14B, 2, 1, memory=memory, width=width, height=height, num_frames=121)


def test_a_refusal_says_so_when_nothing_fits() -> None:
    assert refusal(A14B, 1, 8, memory=8)[1].endswith("nodes x GPUs that fit: none up to 4 x 8")


OFF, LITTLE = {"offload": "auto"}, {"weights_dtype": "float8"}


@pytest.mark.parametrize(
    ("processes", "memory", "chosen", "expected"),
    [
        # Nothing is known, or all fits: the weights stay.
        (1, 0, OFF, (1, False, "never")),
        (1, 80, OFF, (1, False, "never")),
        (1, 80, {"offload": "always"}, (1, False, "always")),
        # One small GPU.
        (1, 24, {}, None),
        (1, 24, OFF, (1, False, "always")),
        (1, 12, OFF, None),
        # Sharding comes first: it needs no host memory.
        (8, 24, OFF, (8, True, "never")),
        (8, 16, OFF, (1, False, "always")),
        (8, 24, {"offload": "always"}, (1, False, "always")),
        # Half the weights.
        (1, 48, {}, None),
        (1, 48, LITTLE, (1, False, "never")),
        (1, 24, LITTLE, None),
        (1, 24, {**LITTLE, **OFF}, (1, False, "always")),
        (2, 32, {}, None),
        (2, 32, LITTLE, (2, True, "never")),
    ],
)
def test_offload_is_the_last_way_to_fit_and_float8_makes_all_ways_smaller(
    processes: int, memory: float, chosen: dict[str, str], expected: tuple[int, bool, str] | None
) -> None:
    plan = pick(A14B, 1, processes, memory=memory, speed=Speed(**chosen))

    assert (plan and (plan.shard, plan.reshard, plan.speed.offload)) == expected
    assert plan is None or replace(plan.speed, offload="never") == replace(Speed(**chosen), offload="never")


@pytest.mark.parametrize(
    ("row", "processes", "memory", "end"),
    [
        (A14B, 1, 48, "1 x 1 would do with CINEVENT_OFFLOAD=auto, CINEVENT_WEIGHTS_DTYPE=float8"),
        (A14B, 1, 24, "1 x 1 would do with CINEVENT_OFFLOAD=auto"),
        (A14B, 1, 8, "that fit: none up to 4 x 8"),
    ],
)
def test_a_refusal_names_the_choices_that_would_fit(row: ModelRow, processes: int, memory: float, end: str) -> None:
    assert refusal(row, 1, processes, memory=memory)[1].endswith(end)


@pytest.mark.parametrize(
    ("row", "chosen", "rules"),
    [
        (TINY, {"attention": "flash"}, {"attention"}),
        (TINY, {"attention": "cudnn"}, {"attention"}),
        (TINY, {"attention": "sage"}, {"attention"}),
        (A14B, {"attention": "fastest"}, {"attention"}),
        (A14B, {"weights_dtype": "int4"}, {"weights_dtype"}),
        (A14B, {"attention": "x", "weights_dtype": "y", "offload": "z"}, {"attention", "weights_dtype", "offload"}),
    ],
)
def test_choices_that_no_machine_has_are_refused(row: ModelRow, chosen: dict[str, str], rules: set[str]) -> None:
    with pytest.raises(Invalid) as by_choose:
        choose(row, num_nodes=1, num_processes=2, speed=Speed(**chosen), **a_video(row))
    with pytest.raises(Invalid) as by_check:
        check(a_plan(speed=Speed(**chosen)), row)

    for caught in (by_choose, by_check):
        assert {(problem.pointer, problem.rule) for problem in caught.value.problems} == {
            ("/plan/speed", rule) for rule in rules
        }


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        (TINY, {"attention": "math", "compile": True, "weights_dtype": "float8"}),
        (A14B, {"attention": "flash3", "compile": True, "weights_dtype": "float8"}),
        (A14B, {"attention": "sage", "offload": "always"}),
    ],
)
def test_choices_may_be_combined(row: ModelRow, chosen: dict[str, Any]) -> None:
    check(a_plan(speed=Speed(**chosen)), row)


@pytest.mark.parametrize(
    ("plan", "rules"),
    [
        (a_plan(num_processes=3, cfg=3), {"cfg"}),
        (a_plan(cfg=1), {"product"}),
        (a_plan(num_processes=4, ulysses=4), {"product"}),
        (a_plan(num_processes=10, ulysses=5), {"heads"}),
        (a_plan(num_nodes=2, num_processes=2, cfg=1, ulysses=4), {"node"}),
        (a_plan(shard=3), {"shard"}),
        (a_plan(num_nodes=2, num_processes=2, ring=2, shard=4), {"shard"}),
        (a_plan(num_processes=7, ulysses=5, shard=2), {"product", "heads", "node", "shard"}),
        (a_plan(ulysses=0), {"positive"}),
        (a_plan(shard=0), {"positive"}),
        (a_plan(num_processes=-2, cfg=-2), {"positive"}),
        (a_plan(speed=Speed(offload="auto")), {"offload"}),
        (a_plan(shard=2, speed=Speed(offload="always")), {"offload"}),
    ],
)
def test_a_plan_that_cannot_run_is_refused_with_its_rules(plan: Plan, rules: set[str]) -> None:
    with pytest.raises(Invalid) as caught:
        check(plan, TINY)

    assert {problem.rule for problem in caught.value.problems} == rules


@pytest.mark.parametrize(
    "plan",
    [
        a_plan(num_processes=8, cfg=1, ring=4, ulysses=2, shard=8, reshard=True),
        a_plan(num_processes=6, ulysses=3),
        a_plan(num_processes=8, ring=4, shard=2),
    ],
)
def test_a_plan_made_by_hand_may_use_what_choose_would_not(plan: Plan) -> None:
    check(plan, TINY)


def test_a_plan_survives_the_way_through_json() -> None:
    speed = Speed(compile=True, attention="flash", weights_dtype="float8")
    plan = a_plan(num_nodes=2, num_processes=8, ulysses=8, shard=8, reshard=True, speed=speed)

    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_from_before_there_was_reshard_or_speed_is_plain() -> None:
    data = a_plan(shard=2).to_json()
    del data["reshard"], data["speed"]

    assert Plan.from_json(data) == a_plan(shard=2)
