"""dispatch's decision as a table: a job, its run, the time -> one act."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from engine.contract.job import Job
from functions.dispatch.handler import Act, Decision, after_failure, decide
from functions.dispatch.launcher import Failure, Observation, Phase, Waiting
from tests.make import AT, a_job, a_request

STALL_S = 60.0
CRASH = Failure(code="engine_crashed", message="exit 1")
ABSENT = Observation(phase=Phase.ABSENT)
PUT_ASIDE = Observation(phase=Phase.PUT_ASIDE)
PATIENCE_S = 600.0
NO_ROOM = Waiting(
    reason="unschedulable",
    message="0/4 nodes are available",
    since=AT,
    patience_s=PATIENCE_S,
    failure=Failure(code="unschedulable", message="the run never started", retryable=False),
)
WAITING = Observation(phase=Phase.WAITING, waiting=NO_ROOM)
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
        (("launched", "started"), PUT_ASIDE, 1, Act.LAUNCH),
        (("launched", "started"), ABSENT, 1, Act.RECOVER),
        (("launched", "started", "retrying"), ABSENT, 1, Act.LAUNCH),
        (("launched",), WAITING, 1, Act.WAIT),
        (("launched", "waiting"), WAITING, PATIENCE_S - 1, Act.WAIT),
        (("launched", "waiting"), WAITING, PATIENCE_S + 1, Act.FAIL),
        (("launched", "waiting"), RUNNING, 1, Act.WAIT),
        (("launched", "waiting"), ABSENT, 1, Act.RECOVER),
        (("launched", "started", "drained"), RUNNING, 1, Act.WAIT),
        (("launched", "started", "drained"), FAILED, 1, Act.RECOVER),
        (("launched", "started", "drained"), PUT_ASIDE, 1, Act.LAUNCH),
        (("launched", "started", "drained"), ABSENT, 1, Act.RECOVER),
        (("cancel",), ABSENT, 1, Act.CANCEL),
        (("launched", "started", "cancel"), RUNNING, 1, Act.CANCEL),
        (("launched", "started", "completed"), RUNNING, 1, Act.WAIT),
        (("launched", "started", "completed"), RUNNING, 60, Act.STOP),
        (("launched", "started", "completed"), SUCCEEDED, 1, Act.STOP),
        (("launched", "started", "completed"), ABSENT, 1, Act.NOTHING),
        (("launched", "waiting", "failed"), WAITING, 1, Act.STOP),
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


def test_a_job_that_waited_to_its_deadline_says_for_what() -> None:
    job = replace(a_job("launched"), request=a_request(deadline_s=30))

    late = decision(job, WAITING, now=AT + timedelta(seconds=31))

    assert late.failure is not None
    assert "(unschedulable): 0/4 nodes are available" in late.failure.message


def test_the_time_a_run_waited_is_no_stall() -> None:
    running = replace(RUNNING, launched_at=AT + timedelta(hours=2))

    assert act(a_job("launched", "waiting"), running, after_s=7200 + STALL_S - 1) is Act.WAIT
    assert act(a_job("launched", "waiting"), running, after_s=7200 + STALL_S + 1) is Act.RETRY


def test_a_run_that_something_deleted_is_lost_and_the_next_attempt_follows() -> None:
    gone = decision(a_job("launched", "started"), ABSENT)

    assert (gone.act, gone.failure.code) == (Act.RECOVER, "run_lost")
    assert after_failure(a_job("launched"), gone.failure).act is Act.RETRY


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
