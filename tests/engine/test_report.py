"""Progress never falls; the reporter tells it without holding anybody up."""

import json
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.adapters.bus import Bus
from engine.contract.schemas import STAGES, validate
from engine.contract.settings import Settings
from engine.report import LogVoice, Progress, Reporter
from tests.make import JOB, TENANT, an_event
from tests.servers import free_port, wait_until

stages = st.tuples(st.just("stage"), st.sampled_from(STAGES))
steps = st.tuples(st.integers(0, 20), st.floats(0, 1e4))


def told(progress: Progress, calls: list[tuple[Any, Any]]) -> list[dict[str, Any]]:
    return [
        progress.stage(second) if first == "stage" else progress.step(first, seconds=second) for first, second in calls
    ]


def a_whole_run(num_steps: int) -> list[tuple[Any, Any]]:
    before, after = [("stage", name) for name in STAGES[:3]], [("stage", name) for name in STAGES[3:]]
    return [*before, *((step, 2.0) for step in range(1, num_steps + 1)), *after]


def heard(bus: Bus) -> list[dict[str, Any]]:
    messages = bus.read("CINEVENT_PROGRESS", matching=f"cinevent.{TENANT}.{JOB}.progress")
    return [json.loads(message.body) for message in messages]


def a_voice(bus: Bus) -> LogVoice:
    return LogVoice(bus=bus, tenant=TENANT, job=JOB, attempt=1)


@given(calls=st.lists(stages | steps, min_size=1, max_size=50))
def test_percent_never_falls_and_every_word_is_valid(calls: list[tuple[Any, Any]]) -> None:
    words = told(Progress(steps=20), calls)
    percents = [word["percent"] for word in words]
    assert percents == sorted(percents)
    for word in words:
        validate(an_event("progress", **word))


def test_a_run_counts_up_to_the_last_stage() -> None:
    words = told(Progress(steps=4), a_whole_run(4))
    percents = [word["percent"] for word in words]
    assert percents == [0, 10, 13, 31.75, 50.5, 69.25, 88, 88, 94, 98]
    assert [word["step"] for word in words] == [0, 0, 0, 1, 2, 3, 4, 4, 4, 4]
    assert words[-1]["stage"] == STAGES[-1]


def test_the_estimate_follows_the_steps() -> None:
    words = told(Progress(steps=10), a_whole_run(10))
    assert words[2]["eta_s"] is None
    assert [word["seconds_per_step"] for word in words[3:]] == [2.0] * 13
    # Nine steps of 2 s, and the stages after them: 12 parts where denoising has 75.
    assert words[3]["eta_s"] == 18 + 20 * 12 / 75


def test_one_slow_step_does_not_change_the_estimate_for_long() -> None:
    words = told(Progress(steps=20), [(1, 60.0), *((step, 1.0) for step in range(2, 13))])
    assert words[-1]["seconds_per_step"] < 2.5


def test_a_stage_is_heard_at_once(bus: Bus) -> None:
    reporter = Reporter(a_voice(bus), steps=10, interval_s=1000)
    for name in STAGES[:3]:
        reporter.stage(name)
        wait_until(lambda name=name: heard(bus) and heard(bus)[-1]["data"]["stage"] == name, what=name)
    reporter.close()


def test_steps_are_heard_now_and_then_and_the_last_one_surely(bus: Bus) -> None:
    started = time.monotonic()
    reporter = Reporter(a_voice(bus), steps=1000, interval_s=0.2)
    for step in range(1, 1001):
        reporter.step(step, seconds=0.001)
        time.sleep(0.0005)
    wait_until(lambda: heard(bus) and heard(bus)[-1]["data"]["step"] == 1000, what="the last step is heard")
    reporter.close()
    words = heard(bus)
    # On a busy machine the thousand steps take longer, and more of them are heard.
    assert 1 <= len(words) <= (time.monotonic() - started) / 0.2
    assert [word["sequence"] for word in words] == sorted({word["sequence"] for word in words})


def test_a_log_that_does_not_answer_holds_nobody_up() -> None:
    """A publish that cannot reach a server tries for seconds; a hundred steps in line would take minutes."""
    bus = Bus.open(Settings(nats_url=f"nats://127.0.0.1:{free_port()}"))
    reporter = Reporter(a_voice(bus), steps=100)
    started = time.monotonic()
    for step in range(100):
        reporter.step(step, seconds=1.0)
    assert time.monotonic() - started < 10
    reporter.close()
    bus.close()
