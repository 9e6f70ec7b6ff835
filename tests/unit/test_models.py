"""The catalog: every row is one that a request for its own defaults passes."""

import pytest

from engine.contract.models import CATALOG, Limits, ModelRow
from tests.make import a_request, an_input_for

rows = pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)


@pytest.mark.parametrize("name", ["width", "height", "num_frames", "fps", "steps"])
@rows
def test_a_default_lies_within_its_limits(row: ModelRow, name: str) -> None:
    limits: Limits = getattr(row, name)

    assert 0 < limits.low <= limits.default <= limits.high


@rows
def test_default_and_limiting_sizes_divide_into_latent_patches(row: ModelRow) -> None:
    sides = [side for limits in (row.width, row.height) for side in (limits.low, limits.default, limits.high)]

    assert [side for side in sides if side % row.size_multiple] == []


@rows
def test_default_and_limiting_frames_divide_into_latent_frames(row: ModelRow) -> None:
    limits = row.num_frames

    assert {(frames - 1) % row.temporal_stride for frames in (limits.low, limits.default, limits.high)} == {0}


@rows
def test_the_default_size_is_within_the_trained_one(row: ModelRow) -> None:
    assert row.width.default * row.height.default <= row.max_pixels


@rows
def test_two_experts_have_two_guidances_and_a_boundary_between_them(row: ModelRow) -> None:
    if row.boundary is None:
        assert row.guidance_scale_2 is None
    else:
        assert row.guidance_scale_2 is not None
        assert 0 < row.boundary < 1


@rows
def test_a_row_with_a_hub_says_where_its_weights_are_and_a_tiny_one_needs_none(row: ModelRow) -> None:
    assert row.hub.startswith("Wan-AI/") != row.name.startswith("tiny-")


@pytest.mark.parametrize(
    ("name", "num_tokens"),
    [("wan2.2-t2v-a14b", 75_600), ("wan2.2-i2v-a14b", 75_600), ("wan2.2-ti2v-5b", 27_280), ("tiny-t2v", 144)],
)
def test_the_default_video_has_the_published_number_of_tokens(name: str, num_tokens: int) -> None:
    row = CATALOG[name]

    found = row.num_tokens(width=row.width.default, height=row.height.default, num_frames=row.num_frames.default)

    assert found == num_tokens


@rows
def test_a_calibration_is_of_every_expert_and_begins_with_nothing_to_compare(row: ModelRow) -> None:
    if row.magnitudes is not None:
        assert len(row.magnitudes.ratios) == len(row.magnitudes.retention) == row.num_experts
        assert {ratios[0] for ratios in row.magnitudes.ratios} == {1.0}


@rows
def test_a_preset_is_a_request_that_is_allowed(row: ModelRow) -> None:
    for name, preset in row.presets.items():
        given = a_request(model=row.name, input=an_input_for(row.name, preset=name)).to_json()["input"]
        assert {option: given[option] for option in preset.options} == preset.options
