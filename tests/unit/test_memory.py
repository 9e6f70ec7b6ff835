"""The estimate of a GPU's memory: what makes it smaller never makes it larger, and it has the parts that it says."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.contract.memory import (
    GIB,
    RESERVE_BYTES,
    estimate,
    expert_bytes,
    expert_params,
    padded_heads,
    tokens_per_rank,
)
from engine.contract.models import CATALOG, ModelRow
from engine.contract.plan import Plan
from engine.contract.speed import Speed
from tests.make import a_plan

ALONE = a_plan(num_processes=1, cfg=1)
rows = st.sampled_from(list(CATALOG.values()))


@st.composite
def videos(draw: st.DrawFn, row: ModelRow) -> dict[str, Any]:
    """Sizes that a request may ask for."""
    side = {
        name: st.integers(limits.low // row.size_multiple, limits.high // row.size_multiple)
        for name, limits in (("width", row.width), ("height", row.height))
    }
    size = {name: draw(number) * row.size_multiple for name, number in side.items()}
    assume(size["width"] * size["height"] <= row.max_pixels)
    return {**size, "num_frames": draw(st.integers(1, row.num_frames.high // 4)) * 4 + 1}


def sharded(shard: int, *, reshard: bool) -> Plan:
    return a_plan(num_processes=shard, cfg=1, shard=shard, reshard=reshard)


@given(st.data())
def test_more_shards_never_need_more(data: st.DataObject) -> None:
    row = data.draw(rows)
    video = data.draw(videos(row))
    few, many = sorted(data.draw(st.lists(st.integers(2, 64), min_size=2, max_size=2)))
    reshard = data.draw(st.booleans())

    few_need, many_need = (estimate(row, sharded(n, reshard=reshard), **video) for n in (few, many))

    assert many_need.weights_bytes <= few_need.weights_bytes
    assert many_need.peak_bytes <= few_need.peak_bytes


@given(st.data())
def test_gathering_layer_by_layer_never_needs_more_than_a_whole_expert(data: st.DataObject) -> None:
    row, shard = data.draw(rows), data.draw(st.integers(2, 64))
    video = data.draw(videos(row))

    whole, layers = (estimate(row, sharded(shard, reshard=reshard), **video) for reshard in (False, True))

    assert layers.weights_bytes <= whole.weights_bytes


@given(st.data())
def test_more_ulysses_never_needs_more_activations(data: st.DataObject) -> None:
    row = data.draw(rows)
    video = data.draw(videos(row))
    # Without padded heads, which cost memory like any other; and with enough tokens that their padding does not count.
    assume(row.num_tokens(**video) >= 1024)
    degrees = st.sampled_from([n for n in range(1, row.num_heads + 1) if row.num_heads % n == 0])
    few, many = sorted(data.draw(st.lists(degrees, min_size=2, max_size=2)))

    few_need, many_need = (
        estimate(row, a_plan(num_processes=n, cfg=1, ulysses=n), **video).activations_bytes for n in (few, many)
    )

    assert many_need <= few_need


@given(st.data())
def test_a_larger_video_never_needs_less(data: st.DataObject) -> None:
    row = data.draw(rows)
    video = data.draw(videos(row))
    longer = {**video, "num_frames": video["num_frames"] + 4}

    assert estimate(row, ALONE, **longer).activations_bytes > estimate(row, ALONE, **video).activations_bytes
    assert estimate(row, ALONE, **longer).vae_bytes == estimate(row, ALONE, **video).vae_bytes


@pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)
def test_two_experts_weigh_twice_as_much_as_one(row: ModelRow) -> None:
    video = {"width": 256, "height": 256, "num_frames": 5}
    size = {"float32": 4, "bfloat16": 2}[row.dtype]

    assert estimate(row, ALONE, **video).weights_bytes == row.num_experts * expert_params(row) * size


@given(st.data())
def test_float8_and_offload_never_need_more(data: st.DataObject) -> None:
    row = data.draw(rows)
    video = data.draw(videos(row))
    plain, small, away, both = (
        estimate(row, replace(ALONE, speed=Speed(weights_dtype=dtype, offload=offload)), **video)
        for offload in ("never", "always")
        for dtype in ("model", "float8")
    )

    # A tiny model's is no more than a few layers.
    if row.hub:
        assert both.weights_bytes < away.weights_bytes < small.weights_bytes < plain.weights_bytes
        assert 0.5 < small.text_bytes / plain.text_bytes < 1
    assert both.host_bytes < away.host_bytes
    assert plain.host_bytes == small.host_bytes == 0
    assert away.host_bytes >= row.num_experts * expert_bytes(row, Speed())


def test_a_model_takes_half_in_float8() -> None:
    for row in CATALOG.values():
        if row.hub:
            halved, whole = (expert_bytes(row, Speed(weights_dtype=dtype)) for dtype in ("float8", "model"))
            assert halved / whole == pytest.approx(0.51, abs=0.01)


def test_stages_that_follow_each_other_do_not_add_up() -> None:
    row = CATALOG["wan2.2-t2v-a14b"]
    need = estimate(
        row, a_plan(num_processes=8, ulysses=4, shard=8, reshard=True), width=1280, height=720, num_frames=81
    )

    # The text encoder is the largest here; the autoencoder has tiles.
    assert need.peak_bytes == need.text_bytes + RESERVE_BYTES
    assert need.peak_gib == need.peak_bytes / GIB
    assert need.weights_bytes + need.activations_bytes < need.text_bytes < need.vae_bytes


@pytest.mark.parametrize(
    ("heads", "ulysses", "padded"), [(40, 8, 40), (40, 3, 42), (40, 16, 48), (24, 16, 32), (4, 3, 6), (4, 4, 4)]
)
def test_heads_are_filled_up_to_the_same_number_for_every_rank(heads: int, ulysses: int, padded: int) -> None:
    row = next(row for row in CATALOG.values() if row.num_heads == heads)

    assert padded_heads(row, ulysses) == padded


@pytest.mark.parametrize(("num_tokens", "ranks", "each"), [(27, 1, 27), (27, 2, 16), (75_600, 4, 18_912), (3, 8, 16)])
def test_tokens_are_filled_up_to_whole_rows_for_every_rank(num_tokens: int, ranks: int, each: int) -> None:
    assert tokens_per_rank(num_tokens, ranks) == each
