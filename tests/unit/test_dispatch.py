"""dispatch's decision as a table: a job, its run, the time -> one act."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from engine.contract.job import Job
from functions.dispatch.handler import Act, Decision, after_failure, decide
from functions.dispatch.launcher import Failure, Observation, Phase
from tests.make import AT, a_job, a_request

STALL_S = 60.0
CRASH = Failure(code="engine_crashed", message="exit 1")
ABSENT = Observation(phase=Phase.ABSENT)
RUNNING = Observation(phase=Phase.RUNNING, launched_at=AT)
SUCCEEDED = Observation(phase=Phase.SUCCEEDED, launched_at=AT)
FAILED = Observation(phase=Phase.FAILED, launched_at=AT, failure=CRASH)


def act(job: Job, run: Observation, *, after_s: float = 1.0) -> Act:
    return decision(job, run, now=AT + timedelta(seconds=after_s)).act


def decision(job: Job, run: Observation, *, now: datetime = AT) -> Decision:
    return decide(job, run, now=now, stall_s=STALL_S)


@pytest.mark.parametrize(
    ("events", "run", "after_s", "expected"),
    [
        ((), ABSENT, 1, Act.LAUNCH),
        (("launched",), RUNNING, 1, Act.WAIT),
        (("launched", "started"), RUNNING, 1, Act.WAIT),
        (("launched", "started", "progress"), RUNNING, STALL_S - 1, Act.WAIT),
        (("launched", "started", "progress"), RUNNING, STALL_S + 1, Act.RETRY),
        (("launched", "started"), FAILED, 1, Act.RECOVER),
        (("launched", "started"), SUCCEEDED, 1, Act.RECOVER),
        (("launched", "started"), ABSENT, 1, Act.LAUNCH),
        (("launched", "started", "retrying"), ABSENT, 1, Act.LAUNCH),
        (("launched", "started", "drained"), RUNNING, 1, Act.WAIT),
        (("launched", "started", "drained"), FAILED, 1, Act.RECOVER),
        (("launched", "started", "drained"), ABSENT, 1, Act.LAUNCH),
        (("cancel",), ABSENT, 1, Act.CANCEL),
        (("launched", "started", "cancel"), RUNNING, 1, Act.CANCEL),
        (("launched", "started", "completed"), RUNNING, 1, Act.WAIT),
        (("launched", "started", "completed"), RUNNING, 60, Act.STOP),
        (("launched", "started", "completed"), SUCCEEDED, 1, Act.NOTHING),
        (("cancelled",), ABSENT, 1, Act.NOTHING),
    ],
)
def test_what_is_true_decides_what_is_done(
    events: tuple[str, ...], run: Observation, after_s: float, expected: Act
) -> None:
    assert act(a_job(*events), run, after_s=after_s) is expected


def test_a_job_is_not_launched_before_it_is_due_and_its_deadline_counts_from_then() -> None:
    job = replace(a_job(), request=a_request(process_in_s=100, deadline_s=30))

    assert act(job, ABSENT, after_s=99) is Act.SCHEDULE
    assert act(job, ABSENT, after_s=100) is Act.LAUNCH
    assert act(job, ABSENT, after_s=131) is Act.FAIL


def test_a_job_over_its_deadline_fails_wherever_it_is() -> None:
    job = replace(a_job("launched"), request=a_request(deadline_s=30))

    late = decision(job, RUNNING, now=AT + timedelta(seconds=31))

    assert late.act is Act.FAIL
    assert late.failure is not None
    assert late.failure.code == "deadline_exceeded"


def test_a_launch_is_of_the_current_attempt() -> None:
    assert decision(a_job(), ABSENT).attempt == 1
    assert decision(a_job("launched", "retrying"), ABSENT).attempt == 2


def test_attempts_end_at_the_requests_limit() -> None:
    job = a_job("launched", request=a_request(max_attempts=2))

    assert after_failure(job, CRASH) == Decision(act=Act.RETRY, attempt=2, failure=CRASH)
    assert after_failure(replace(job, attempt=2), CRASH) == Decision(act=Act.FAIL, failure=CRASH)


def test_a_failure_that_no_attempt_can_mend_is_final() -> None:
    failure = replace(CRASH, retryable=False)

    assert after_failure(a_job("launched"), failure).act is Act.FAIL


def test_a_drained_run_is_tried_again_and_does_not_count() -> None:
    once = a_job("launched", "started", "drained", request=a_request(max_attempts=1))
    ended = decision(once, FAILED)
    assert (ended.act, ended.failure.code) == (Act.RECOVER, "drained")

    after = after_failure(once, ended.failure)
    assert (after.act, after.attempt) == (Act.RETRY, 2)

    assert after_failure(replace(once, attempt=2), CRASH).act is Act.FAIL


def test_a_run_that_crashes_after_it_was_drained_and_started_again_has_crashed() -> None:
    assert decision(a_job("launched", "drained", "started"), FAILED).failure == CRASH


@pytest.mark.parametrize(
    ("stage", "seconds_per_step", "patience_s"),
    [("denoising", 1.0, 90), ("denoising", 10.0, 300), ("denoising", 1000.0, 900), ("decoding", 1.0, 900)],
)
def test_a_step_is_waited_for_as_long_as_the_steps_before_say(
    stage: str, seconds_per_step: float, patience_s: float
) -> None:
    progress = {"attempt": 1, "stage": stage, "seconds_per_step": seconds_per_step}
    job = a_job("launched", "started", "progress", progress=progress)
    acts = [
        decide(job, RUNNING, now=AT + timedelta(seconds=patience_s + delta), stall_s=900.0).act for delta in (-1, 1)
    ]
    assert acts == [Act.WAIT, Act.RETRY]
