"""A plan in words: one line per degree that says why, and the memory."""

from typing import Any

import pytest

from engine.contract.explain import explain
from engine.contract.models import CATALOG
from engine.contract.plan import choose
from engine.contract.speed import Speed
from tests.make import a_plan

A14B = CATALOG["wan2.2-t2v-a14b"]
VIDEO = {"width": 832, "height": 480, "num_frames": 81}
CHOICES = ["compile", "attention", "weights", "offload"]
NEEDS = ["memory", "reading the prompt", "denoising", "decoding"]
STARTS = ["cfg", "ring", "ulysses", "shard", "sequence", *CHOICES, *NEEDS]


@pytest.mark.parametrize("counts", [(1, 1), (1, 3), (1, 8), (2, 8), (4, 8)])
def test_every_degree_has_its_line(counts: tuple[int, int]) -> None:
    plan = choose(A14B, num_nodes=counts[0], num_processes=counts[1], **VIDEO)

    lines = explain(plan, A14B, **VIDEO)

    assert [next(start for start in STARTS if line.startswith(start)) for line in lines] == STARTS
    assert lines[:4] == [
        line
        for line, name in zip(lines, STARTS[:4], strict=False)
        if line.startswith(f"{name} {getattr(plan, name)}: ")
    ]


def test_what_is_padded_is_said() -> None:
    lines = explain(a_plan(num_processes=16, cfg=1, ulysses=16), A14B, **VIDEO)

    assert "3 each; 8 of 48 are padding, 16.7 % of the attention for nothing" in lines[2]
    assert lines[4] == "sequence: 32,768 tokens, 8 of them padding; 2,048 per GPU"


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, "compile off: layers run as they are written"),
        ({"compile": True}, "compile on: layers run as torch.compile made them"),
        ({"attention": "flash3"}, "attention flash3: on a machine without it the run is refused"),
        ({"weights_dtype": "float8"}, "lie in 8 bits and are cast to bfloat16"),
        ({"offload": "always"}, "offload always: layers lie in host memory, 80.9 GiB for each GPU"),
    ],
)
def test_what_is_chosen_for_speed_is_said(chosen: dict[str, Any], words: str) -> None:
    assert words in "\n".join(explain(a_plan(speed=Speed(**chosen)), A14B, **VIDEO))


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"shard": 1}, "every GPU holds all weights"),
        ({"shard": 2}, "an expert is gathered once"),
        ({"shard": 2, "reshard": True}, "a layer is gathered for its own turn"),
        ({"cfg": 1, "ring": 2}, "2 parts of the sequence gather each other's keys and values"),
        ({"num_processes": 1, "cfg": 1}, "1 GPU cannot be halved"),
    ],
)
def test_the_reason_is_the_plans_own(over: dict[str, int], words: str) -> None:
    assert words in "\n".join(explain(a_plan(**over), A14B, **VIDEO))


def test_small_memory_is_shown_in_mib() -> None:
    row = CATALOG["tiny-t2v"]

    lines = explain(a_plan(), row, width=128, height=96, num_frames=9)

    assert lines[11] == "denoising: 3.8 MiB weights, 1.8 MiB activations"
