"""A job as the fold of its events, and the words that name it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.events import EVENTS, Event
from engine.contract.job import (
    TRANSITIONS,
    Job,
    State,
    artifact_key,
    derived_id,
    fold,
    is_id,
    is_tenant,
    new_id,
    run_name,
)
from tests.make import AT, JOB, a_job, a_request, an_event


def folded(*events: Event) -> Job:
    """The job after `requested` and these events, in this order."""
    job = fold(enumerate((an_event("requested"), *events), start=1))
    assert job is not None
    return job


def run(attempt: int) -> list[Event]:
    """What is said about one attempt until it denoises."""
    return [an_event(name, attempt=attempt) for name in ("launched", "started", "progress")]


WAITING = an_event("waiting")
RETRY = an_event("retrying", attempt=2)


@pytest.mark.parametrize(
    ("events", "state", "stage", "attempt"),
    [
        ([], "PENDING", "queued", 0),
        (run(1)[:1], "PENDING", "launching", 1),
        (run(1)[:2], "PROCESSING", "starting", 1),
        ([run(1)[0], WAITING], "PENDING", "waiting: unschedulable: 0/4 nodes are available", 1),
        ([run(1)[0], WAITING, *run(1)[1:]], "PROCESSING", "denoising", 1),
        ([*run(1)[:2], WAITING], "PROCESSING", "starting", 1),
        ([run(1)[0], WAITING, RETRY, run(2)[0]], "PENDING", "launching", 2),
        ([WAITING, RETRY, an_event("launched", attempt=2)], "PENDING", "launching", 2),
        ([run(1)[0], an_event("cancel"), WAITING], "PENDING", "cancelling", 1),
        (run(1), "PROCESSING", "denoising", 1),
        ([*run(1), RETRY], "PENDING", "retrying", 2),
        ([*run(1), RETRY, *run(2)[:2]], "PROCESSING", "starting", 2),
        ([*run(1), an_event("completed")], "COMPLETED", "completed", 1),
        ([an_event("failed", attempt=0)], "FAILED", "failed", 0),
        ([*run(1), RETRY, an_event("failed", attempt=2)], "FAILED", "failed", 2),
        ([an_event("cancel")], "PENDING", "cancelling", 0),
        ([an_event("cancel"), *run(1)], "PROCESSING", "cancelling", 1),
        ([*run(1), an_event("cancel"), an_event("cancelled")], "CANCELLED", "cancelled", 1),
        ([*run(1), an_event("cancel"), an_event("completed")], "COMPLETED", "completed", 1),
        ([*run(1), an_event("failed"), an_event("completed")], "FAILED", "failed", 3),
        ([*run(1), an_event("completed"), RETRY, *run(2)], "COMPLETED", "completed", 1),
        ([*run(1), RETRY, *run(1)], "PENDING", "retrying", 2),
        ([*run(1), RETRY, *run(2), *run(1)[:2]], "PROCESSING", "denoising", 2),
        ([*run(1), RETRY, an_event("completed", attempt=1)], "COMPLETED", "completed", 2),
        ([run(1)[2], run(1)[0]], "PENDING", "launching", 1),
    ],
)
def test_events_lead_to_a_state(events: list[Event], state: str, stage: str, attempt: int) -> None:
    job = folded(*events)

    assert (job.state, job.stage, job.attempt) == (state, stage, attempt)


def test_a_run_that_starts_before_its_launch_is_written_down_is_not_set_back() -> None:
    """The engine may speak before dispatch has published `launched`: the stage fell back to "launching"."""
    launched, started, _ = run(1)

    job = folded(started, launched)

    assert (job.state, job.stage) == (State.PROCESSING, "starting")


def test_without_a_requested_event_there_is_no_job() -> None:
    assert fold([]) is None
    assert fold([(2, an_event("launched")), (3, an_event("completed"))]) is None


def test_a_job_carries_its_request_and_the_times_of_its_events() -> None:
    started, done = AT + timedelta(seconds=5), AT + timedelta(seconds=60)

    job = folded(an_event("started", time=started), an_event("completed", time=done))

    assert (job.id, job.tenant, job.request) == (JOB, "default", a_request())
    assert (job.created_at, job.started_at, job.finished_at) == (AT, started, done)
    assert job.outcome == an_event("completed").data


def test_a_second_requested_event_changes_nothing() -> None:
    second = an_event("requested", request=a_request(priority="low").to_json())

    assert folded(second, *run(1)) == replace(folded(*run(1)), sequence=folded(second, *run(1)).sequence)


def test_progress_of_the_last_attempt_is_gone_with_the_next_one() -> None:
    assert folded(*run(1)).progress == run(1)[2].data
    assert folded(*run(1), RETRY).progress == {}
    assert folded(*run(1), RETRY).progress_at is None


def test_the_sequence_is_that_of_the_last_event_that_counted() -> None:
    job = fold([(10, an_event("requested")), (20, an_event("completed")), (30, RETRY)])

    assert job is not None
    assert job.sequence == 20


def test_a_job_passes_on_the_trace_of_its_request_and_nothing_else() -> None:
    extensions = {"traceparent": "00-ab-cd-01", "correlationid": "order-7", "color": "blue"}

    job = fold([(1, an_event("requested", extensions=extensions))])

    assert job is not None
    assert job.extensions == {"traceparent": "00-ab-cd-01", "correlationid": "order-7"}


_words = st.sampled_from(["launched", "started", "progress", "retrying", "cancel", "completed", "failed", "cancelled"])
_events = st.builds(
    lambda name, attempt: an_event(name) if name == "cancel" else an_event(name, attempt=attempt),
    _words,
    st.integers(1, 4),
)


@given(st.lists(_events, max_size=12))
def test_whatever_comes_in_whatever_order_a_final_state_stays(events: Sequence[Event]) -> None:
    jobs = [folded(*events[:count]) for count in range(len(events) + 1)]

    for before, after in pairwise(jobs):
        assert after.attempt >= before.attempt
        if before.state.is_final:
            assert after == before


@given(st.lists(_events, max_size=8), st.data())
def test_words_of_an_older_attempt_are_ignored(events: Sequence[Event], data: st.DataObject) -> None:
    job = folded(*events, RETRY)
    late = data.draw(st.sampled_from(["launched", "started", "progress", "retrying"]))

    assert folded(*events, RETRY, an_event(late, attempt=job.attempt - 1)) == job


@given(st.lists(_events, max_size=10), st.data())
def test_a_log_that_lost_events_still_folds(events: Sequence[Event], data: st.DataObject) -> None:
    kept = data.draw(st.permutations(events).map(lambda shuffled: shuffled[: len(shuffled) // 2]))

    job = folded(*kept)

    assert job.state.is_final == any(event.name in ("completed", "failed", "cancelled") for event in kept)


def test_every_state_has_a_row_and_rows_speak_of_known_events() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {name for row in TRANSITIONS.values() for name in row} <= set(EVENTS)
    assert {state for state, row in TRANSITIONS.items() if not row} == {state for state in State if state.is_final}


def test_every_event_in_the_table_leads_where_it_says() -> None:
    jobs = {State.PENDING: a_job(), State.PROCESSING: a_job("launched", "started")}

    for state, job in jobs.items():
        assert job.state is state
        names = () if state is State.PENDING else ("launched", "started")
        assert {name: a_job(*names, name).state for name in TRANSITIONS[state]} == TRANSITIONS[state]


def test_a_repeat_of_the_same_parts_gives_the_same_id() -> None:
    assert derived_id("a", "key", "x") == derived_id("a", "key", "x")


@pytest.mark.parametrize(
    "parts",
    [
        ("a", "key", "bc", "d"),
        ("a", "key", "b", "c", "d"),
        ("a", "key", "b", "cd", ""),
        ("a", "key", "bcd"),
        ("ak", "ey", "b", "cd"),
        ("a", "event", "b", "cd"),
        ("b", "key", "b", "cd"),
        ("a", "key", "b1:c", "d"),
        ("a", "key", "b2:cd"),
    ],
)
def test_parts_shifted_against_each_other_give_another_id(parts: tuple[str, ...]) -> None:
    assert derived_id(*parts) != derived_id("a", "key", "b", "cd")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2))
def test_an_id_has_the_form_of_an_id(parts: list[str]) -> None:
    assert is_id(derived_id(*parts))
    assert is_id(new_id())


@pytest.mark.parametrize(
    "text", ["", "j", JOB[:-1], JOB + "a", JOB.upper(), "k" + JOB[1:], JOB[:-1] + "1", JOB + "\n", f" {JOB}"]
)
def test_anything_else_is_no_id(text: str) -> None:
    assert not is_id(text)


def test_new_ids_differ() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("text", ["a", "0", "team-1", "a" * 32, "alarm", "x--y"])
def test_a_dns_label_may_name_a_tenant(text: str) -> None:
    assert is_tenant(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-a",
        "a-",
        "A",
        "a.b",
        "a b",
        "a*",
        ">",
        "a" * 33,
        "a\n",
        "\u00e4",
        "dead",
        "alarms",
        "webhooks",
        "deliveries",
    ],
)
def test_what_would_break_or_imitate_a_subject_names_no_tenant(text: str) -> None:
    assert not is_tenant(text)


def test_names_of_runs_and_artifacts_tell_attempts_apart() -> None:
    assert run_name(JOB, 10) == f"{JOB}-a10"
    assert artifact_key("team", JOB, 2, "video.mp4") == f"team/{JOB}/a2/video.mp4"
