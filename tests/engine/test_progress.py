"""Progress: percent never falls, the estimate follows what is measured, and both keep to what earlier runs took."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.schemas import STAGES, validate
from engine.pace import PARTS, Pace, Work, learn, pace_key
from engine.progress import Progress
from tests.make import a_pace, a_request, a_work, an_event, an_input

stages = st.tuples(st.just("stage"), st.sampled_from(STAGES))
steps = st.tuples(st.integers(0, 20), st.floats(0, 1e4))
parts = st.tuples(st.just("part"), st.floats(0, 1))
paces = st.fixed_dictionaries({part: st.floats(1e-3, 1e3) for part in PARTS})
RECORDED = sorted(Path(__file__).with_name("recorded").glob("*.json"))


def told(progress: Progress, calls: list[tuple[Any, Any]]) -> list[dict[str, Any]]:
    words = []
    for first, second in calls:
        if first == "stage":
            progress.stage(second)
        elif first == "part":
            if words and words[-1]["stage"] != "denoising":
                progress.part(second, seconds=1.0)
        else:
            progress.step(first, seconds=second)
        words.append(progress.data())
    return words


def a_whole_run(num_steps: int) -> list[tuple[Any, Any]]:
    before, after = [("stage", name) for name in STAGES[:3]], [("stage", name) for name in STAGES[3:]]
    return [*before, *((step, 2.0) for step in range(1, num_steps + 1)), *after]


@given(calls=st.lists(stages | steps | parts, min_size=1, max_size=50), pace=st.none() | paces)
def test_percent_never_falls_and_every_word_is_valid(calls: list[tuple[Any, Any]], pace: Any) -> None:
    words = told(Progress(a_work(), pace and a_pace(**pace)), calls)
    percents = [word["percent"] for word in words]
    assert percents == sorted(percents)
    assert percents[-1] < 100
    for word in words:
        validate(an_event("progress", **word))


def test_without_earlier_runs_percent_is_shared_out_by_a_guess() -> None:
    words = told(Progress(a_work(steps=4)), a_whole_run(4))
    assert [word["percent"] for word in words] == [0, 10, 13, 31.75, 50.5, 69.25, 88, 88, 94, 98]
    assert [word["step"] for word in words] == [0, 0, 0, 1, 2, 3, 4, 4, 4, 4]
    assert words[-1]["stage"] == STAGES[-1]


def test_without_earlier_runs_the_estimate_comes_with_the_first_step() -> None:
    words = told(Progress(a_work(steps=10)), a_whole_run(10))
    assert words[2]["eta_s"] is None
    assert [word["seconds_per_step"] for word in words[3:]] == [2.0] * 13
    # Nine steps of 2 s, and the stages after them: 12 parts where denoising has 75.
    assert words[3]["eta_s"] == 18 + 20 * 12 / 75


def test_with_a_pace_percent_and_estimate_are_those_of_its_seconds() -> None:
    pace = a_pace(loading=5, encoding_text=1, warm_up=2, step=2, decoding=6, encoding_video=1, storing=1)
    words = told(Progress(a_work(steps=4), pace), a_whole_run(4))
    # 24 seconds in all; the first step takes two seconds less than expected.
    assert [word["eta_s"] for word in words] == [24, 19, 18, 14, 12, 10, 8, 8, 2, 1]
    assert [round(word["percent"] * 24 / 100) for word in words] == [0, 5, 6, 10, 12, 14, 16, 16, 22, 23]


def test_one_slow_step_does_not_change_the_estimate_for_long() -> None:
    words = told(Progress(a_work(steps=20)), [(1, 60.0), *((step, 1.0) for step in range(2, 13))])
    assert words[-1]["seconds_per_step"] == 1.0


def test_a_run_that_goes_on_at_a_later_step_counts_from_there() -> None:
    """The first step after a restart is slow again; ten of twenty are not done again."""
    progress = Progress(a_work(steps=20), a_pace())
    words = told(progress, [("stage", "denoising"), (11, 3.0), (12, 1.0)])
    assert words[-1]["eta_s"] == 8 * 1.0 + 3
    assert progress.step_seconds() == {"warm_up": 2.0, "step": 1.0}


def test_a_stage_that_is_done_in_parts_is_estimated_by_them() -> None:
    progress = Progress(a_work(), a_pace(decoding=10, encoding_video=1, storing=1))
    progress.stage("decoding")
    before = progress.data()
    progress.part(0.25, seconds=5)
    after = progress.data()
    assert (before["eta_s"], after["eta_s"]) == (12, 17)
    # 23 seconds before and twelve from here on, a quarter of ten of them done.
    assert after["percent"] - before["percent"] == pytest.approx(2.5 / 35 * 100, abs=0.01)
    progress.stage("encoding_video")
    assert progress.data()["eta_s"] == 2


def test_a_pace_is_scaled_to_the_size_of_the_request() -> None:
    measured = dict.fromkeys(PARTS, 1.0)
    pace = learn(None, a_work(num_tokens=1000, num_pixels=10_000), measured)
    assert pace
    seconds = pace.seconds(a_work(num_tokens=2000, num_pixels=30_000))
    assert [seconds[part] for part in ("loading", "decoding", "encoding_video", "storing")] == [1, 3, 3, 1]
    # Twice the tokens are more than twice the work: attention is quadratic.
    assert seconds["step"] == pytest.approx(2 * (1 + 2000 / 26_000) / (1 + 1000 / 26_000))


def test_a_pace_moves_towards_what_is_new() -> None:
    work = a_work()
    pace = learn(a_pace(loading=10), work, dict.fromkeys(PARTS, 20.0))
    assert pace
    assert pace.seconds(work)["loading"] == pytest.approx(13)


def test_a_run_that_did_no_step_teaches_the_rest_only() -> None:
    """It was started again with all its steps done."""
    seconds = {part: 5.0 for part in PARTS if part not in ("warm_up", "step")}
    assert learn(None, a_work(), seconds) is None
    pace = learn(a_pace(step=1), a_work(), seconds)
    assert pace
    assert pace.seconds(a_work())["step"] == pytest.approx(1)


@given(paces)
def test_a_pace_is_read_as_it_was_written(values: dict[str, float]) -> None:
    assert Pace.from_json(a_pace(**values).to_json()) == a_pace(**values)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", json.dumps({"seconds_per_unit": {}}).encode()])
def test_what_is_no_pace_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (of several kinds)
        Pace.from_json(body)


@pytest.mark.parametrize("value", [-1, 0, None, "1", True, float("nan"), float("inf")])
def test_a_pace_with_such_a_step_is_refused(value: object) -> None:
    values = {part: value if part == "step" else 1 for part in PARTS}
    with pytest.raises(ValueError, match="step"):
        Pace.from_json(json.dumps({"seconds_per_unit": values}).encode())


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_percent_never_falls_on_a_recorded_run(path: Path) -> None:
    words, _ = replayed(path)
    percents = [word["percent"] for _, word in words]
    assert percents == sorted(percents)
    assert percents[0] == 0


def test_the_estimate_at_half_way_is_right_to_15_percent_on_recorded_runs() -> None:
    """bench/engine_eta.py recorded them, each with the pace of one earlier run of another size."""
    errors = [error_at_half_way(*replayed(path)) for path in RECORDED]
    assert len(errors) >= 4
    assert sum(errors) / len(errors) <= 0.15


def replayed(path: Path) -> tuple[list[tuple[float, dict[str, Any]]], float]:
    """What Progress says after each recorded call, when, and when the run really ended."""
    run = json.loads(path.read_text())
    progress = Progress(Work(**run["work"]), Pace(seconds_per_unit=run["seconds_per_unit"]))
    words = []
    since = 0.0
    for at_s, what, value in run["calls"]:
        if what == "stage":
            since = at_s
            progress.stage(value)
        elif what == "part":
            progress.part(value, seconds=at_s - since)
        else:
            progress.step(what, seconds=value)
        words.append((at_s, progress.data()))
    return words, run["end_s"]


def error_at_half_way(words: list[tuple[float, dict[str, Any]]], end_s: float) -> float:
    """By which share of the time that is really left the newest estimate is wrong."""
    half = end_s / 2
    at_s, word = [(at_s, word) for at_s, word in words if at_s <= half][-1]
    return abs(at_s + word["eta_s"] - end_s) / (end_s - half)


def test_runs_whose_steps_are_of_another_kind_have_a_pace_of_their_own() -> None:
    """A step of one pass takes half the time, and one that reuses others none: estimates must not learn from them."""
    inputs = ({}, {"guidance_scale": 1}, {"cache": "taylorseer"}, {"guidance_scale": 1, "cache": "magcache"})
    requests = [a_request(input=an_input(**given)) for given in inputs]
    keys = [pace_key("pace", Work.of(request, world_size=2)) for request in requests]
    assert keys[0] == "pace/tiny-t2v-2.json"
    assert len(set(keys)) == 4
