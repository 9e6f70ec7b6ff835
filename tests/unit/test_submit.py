"""submit's decisions as values: what a header or a query means, how a job reads, when to ask again."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.adapters.history import Position
from engine.contract.errors import BadEvent, Invalid
from engine.contract.job import State
from functions.submit import handler
from functions.submit.shown import etag, job_json, retry_after_s, stage
from functions.submit.videos import video_json
from tests.make import AT, a_body, a_job, a_request
from tests.make import an_event as a_job_event


def shown(*events: str, **over: Any) -> dict[str, Any]:
    return job_json(a_job(*events, **over), base_url="http://x", now=AT)


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=5", 5),
        ("respond-async, wait=10", 10),
        ("Wait = 7; foo", 7),
        ("wait=600", 60),
        ("", 0),
        ("respond-async", 0),
        ("wait", 0),
        ("wait=-5", 0),
        ("wait=5s", 0),
        ("nowait=5", 0),
        ("wait=٥", 0),
    ],
)
def test_a_wait_is_read_as_rfc_7240_has_it_and_has_an_end(prefer: str, seconds: int) -> None:
    assert handler.wait_s(prefer) == seconds


@given(jobs=st.integers(0, 10**18), progress=st.integers(0, 10**18))
def test_a_position_is_read_as_it_was_written(jobs: int, progress: int) -> None:
    position = Position(jobs=jobs, progress=progress)

    assert handler.position_of(str(position)) == position


@pytest.mark.parametrize("text", [None, "", "7", "7-", "a-b", "7-8-9", "-7-8", "7-8\n", "٧-٨", "9" * 40 + "-1"])
def test_what_is_no_position_is_none(text: str | None) -> None:
    assert handler.position_of(text) is None


def test_filters_are_met_together() -> None:
    query = handler.query_of({"state": "PENDING", "model": "tiny-t2v", "metadata.order": "7", "metadata.a": ""})

    assert query.keeps(a_job(request=a_request(metadata={"order": "7", "a": "", "b": "c"})))
    assert not query.keeps(a_job(request=a_request(metadata={"order": "7"})))
    assert not query.keeps(a_job("failed", request=a_request(metadata={"order": "7", "a": ""})))


def test_times_of_a_query_are_instants() -> None:
    query = handler.query_of({"created_after": "2026-11-20T11:00:00+01:00", "created_before": "2026-11-20T10:00:00Z"})

    assert (query.after, query.before) == (AT, AT)


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=3))
def test_any_query_is_a_query_or_invalid(given_: dict[str, str]) -> None:
    with suppress(Invalid):
        assert handler.query_of(given_).keeps(a_job()) in (True, False)


def test_an_event_of_a_batch_is_named_by_its_place() -> None:
    bad = replace(a_job_event("requested"), type=handler.REQUEST_TYPE, data={"model": "sora"})

    with pytest.raises(Invalid) as caught:
        handler.from_batch([replace(bad, data=a_body()), bad], tenant="acme", now=AT)

    assert [problem.pointer for problem in caught.value.problems] == ["/1/model"]


@pytest.mark.parametrize("count", [0, 101])
def test_a_batch_has_a_size(count: int) -> None:
    with pytest.raises(BadEvent, match="1 to 100"):
        handler.from_batch([a_job_event("requested")] * count, tenant="acme", now=AT)


def test_a_retry_asks_for_the_same_at_once_and_is_one_job() -> None:
    job = a_job("failed", request=a_request(process_in_s=60))
    first, second = handler.again(job), handler.again(job)

    request = first.data["request"]
    assert first.data["job"] == second.data["job"] != job.id
    assert request["input"] == job.request.to_json()["input"]
    assert (request["process_in_s"], first.data["retry_of"]) == (None, job.id)


@pytest.mark.parametrize(
    ("events", "eta_s", "seconds"),
    [
        ((), None, 5),
        (("started",), None, 2),
        (("started",), 40.0, 10),
        (("started",), 1000.0, 30),
        (("started",), 0.0, 1),
    ],
)
def test_a_reader_is_told_to_come_again_while_something_may_change(
    events: tuple[str, ...], eta_s: float | None, seconds: int
) -> None:
    job = a_job(*events)

    assert retry_after_s(replace(job, progress={"eta_s": eta_s} if events else {})) == seconds
    assert retry_after_s(a_job("failed")) is None


def test_a_job_is_scheduled_until_it_is_due() -> None:
    job = a_job(request=a_request(process_in_s=60))

    assert stage(job, now=AT) == "scheduled"
    assert stage(job, now=AT + timedelta(seconds=60)) == "queued"
    assert stage(replace(job, stage="cancelling"), now=AT) == "cancelling"


def test_the_tag_of_a_job_changes_with_what_it_shows_and_not_with_its_links() -> None:
    first = shown("started", "progress")
    linked = {**shown("completed"), "artifacts": {"video": {"url": "another"}}}

    assert etag(first) == etag(shown("started", "progress"))
    assert etag(first) != etag(shown("started"))
    assert etag(linked) == etag(shown("completed"))


def test_links_lead_to_what_there_is() -> None:
    assert "retry" in shown("failed")["links"]
    assert {"video", "poster"} <= set(shown("completed")["links"])
    assert "preview" in shown("started", "progress")["links"]
    assert set(shown()["links"]) == {"self", "events", "cancel"}


def test_timings_are_whole_and_never_negative() -> None:
    late = a_job("started", "completed", started_at=AT - timedelta(seconds=5))

    timings = job_json(late, base_url="", now=AT)["timings"]
    assert (timings["waiting"], timings["loading"], timings["total"]) == (0.0, 2.0, 0.0)


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_word_of_openais(state: State) -> None:
    job = replace(a_job("failed"), state=state)

    assert video_json(job)["status"] in ("queued", "in_progress", "completed", "failed")
