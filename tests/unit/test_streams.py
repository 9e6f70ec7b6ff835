"""The streams and consumers: every message has exactly one place, and everybody pulls only their own."""

from itertools import combinations

import pytest

from engine.contract.events import EVENTS, subject
from engine.contract.streams import (
    CONSUMERS,
    SOURCES,
    STREAMS,
    Consumer,
    Stream,
    alarm_subjects,
    dead_subject,
    delivery_subjects,
    record_subject,
    status_subject,
)
from tests.make import JOB, TENANT, a_request, an_event

BY_NAME = {stream.name: stream for stream in STREAMS}
JOB_EVENTS = [name for name, kind in EVENTS.items() if kind.suffix]
DELIVERY = "d" + "abc23" * 5
ALARM = alarm_subjects(TENANT, JOB)


def meet(one: str, other: str) -> bool:
    """Whether some subject matches both patterns: `*` is one token, a last `>` one or more."""
    ours, theirs = one.split("."), other.split(".")
    for mine, yours in zip(ours, theirs, strict=False):
        if ">" in (mine, yours):
            return True
        if "*" not in (mine, yours) and mine != yours:
            return False
    return len(ours) == len(theirs)


def streams_of(text: str) -> list[str]:
    return [stream.name for stream in STREAMS if any(meet(pattern, text) for pattern in stream.subjects)]


@pytest.mark.parametrize(
    ("one", "other", "do_meet"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "*.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("*.>", "a.b", True),
        ("b.>", "a.>", False),
    ],
)
def test_patterns_meet_as_nats_says(one: str, other: str, do_meet: bool) -> None:
    assert meet(one, other) is meet(other, one) is do_meet


@pytest.mark.parametrize(("one", "other"), list(combinations(STREAMS, 2)), ids=lambda stream: stream.name)
def test_no_two_streams_share_a_subject(one: Stream, other: Stream) -> None:
    assert [(a, b) for a in one.subjects for b in other.subjects if meet(a, b)] == []


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_no_two_subjects_of_a_stream_share_one(stream: Stream) -> None:
    assert [(a, b) for a, b in combinations(stream.subjects, 2) if meet(a, b)] == []


@pytest.mark.parametrize("name", JOB_EVENTS)
def test_every_job_event_goes_into_exactly_one_stream(name: str) -> None:
    wanted = "CINEVENT_PROGRESS" if name == "progress" else "CINEVENT_JOBS"

    assert streams_of(subject(an_event(name))) == [wanted]


@pytest.mark.parametrize("priority", ["high", "normal", "low"])
def test_each_priority_has_a_subject_and_a_consumer(priority: str) -> None:
    event = an_event("requested", request=a_request(priority=priority).to_json())

    pulling = [name for name, consumer in CONSUMERS.items() if meet(consumer.filter, subject(event))]

    assert subject(event) == f"cinevent.{TENANT}.{JOB}.requested.{priority}"
    assert pulling == [f"dispatch-{priority}"]


def test_an_alarm_is_set_and_rings_in_the_stream_that_schedules() -> None:
    assert [streams_of(each) for each in ALARM] == [["CINEVENT_ALARMS"]] * 2
    assert BY_NAME["CINEVENT_ALARMS"].schedules


def test_an_alarm_that_is_only_set_is_pulled_by_nobody() -> None:
    set_on, due_on = ALARM

    assert [name for name, consumer in CONSUMERS.items() if meet(consumer.filter, set_on)] == []
    assert [name for name, consumer in CONSUMERS.items() if meet(consumer.filter, due_on)] == ["dispatch-alarms"]


@pytest.mark.parametrize("consumer", CONSUMERS.values(), ids=CONSUMERS)
def test_a_consumer_pulls_from_its_stream_alone_and_for_one_source(consumer: Consumer) -> None:
    assert streams_of(consumer.filter) == [consumer.stream]
    assert len([source for source in SOURCES.values() if consumer.name in source.consumers]) == 1
    assert min(consumer.slots, consumer.tries) > 0


def test_a_delivery_waits_and_is_due_in_the_stream_that_schedules() -> None:
    set_on, due_on = delivery_subjects(TENANT, "shop", DELIVERY)

    assert [streams_of(each) for each in (set_on, due_on)] == [["CINEVENT_WEBHOOKS"]] * 2
    assert BY_NAME["CINEVENT_WEBHOOKS"].schedules
    assert [name for name, consumer in CONSUMERS.items() if meet(consumer.filter, set_on)] == []
    assert [name for name, consumer in CONSUMERS.items() if meet(consumer.filter, due_on)] == ["notify-deliveries"]


def test_records_and_statuses_have_streams_that_nobody_pulls() -> None:
    record = record_subject(TENANT, endpoint="shop", job=JOB, delivery=DELIVERY)

    assert streams_of(record) == ["CINEVENT_DELIVERIES"]
    assert streams_of(status_subject(TENANT, "shop")) == ["CINEVENT_ENDPOINTS"]
    assert [
        name for name, row in CONSUMERS.items() if row.stream in ("CINEVENT_DELIVERIES", "CINEVENT_ENDPOINTS")
    ] == []


@pytest.mark.parametrize("stream", ["CINEVENT_JOBS", "CINEVENT_ALARMS", "CINEVENT_WEBHOOKS"])
def test_no_message_is_pulled_twice(stream: str) -> None:
    filters = [consumer.filter for consumer in CONSUMERS.values() if consumer.stream == stream]

    assert [(a, b) for a, b in combinations(filters, 2) if meet(a, b)] == []


def test_sources_name_consumers_that_there_are() -> None:
    assert {name for source in SOURCES.values() for name in source.consumers} == set(CONSUMERS)
    assert {source.function for source in SOURCES.values()} <= {"submit", "dispatch", "notify"}


@pytest.mark.parametrize("name", JOB_EVENTS)
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_dead_letter_of_a_job_event_goes_to_the_dead(consumer: str, name: str) -> None:
    where = dead_subject(consumer, subject(an_event(name)))

    assert where.startswith(f"cinevent.dead.{consumer}.{TENANT}.{JOB}.")
    assert streams_of(where) == ["CINEVENT_DEAD"]


def test_a_dead_letter_of_an_alarm_goes_to_the_dead() -> None:
    where = dead_subject("dispatch-alarms", ALARM[1])

    assert where == f"cinevent.dead.dispatch-alarms.{TENANT}.{JOB}.check"
    assert streams_of(where) == ["CINEVENT_DEAD"]


def test_a_dead_delivery_goes_to_the_dead() -> None:
    where = dead_subject("notify-deliveries", delivery_subjects(TENANT, "shop", DELIVERY)[1])

    assert where == f"cinevent.dead.notify-deliveries.{TENANT}.shop.{DELIVERY}"
    assert streams_of(where) == ["CINEVENT_DEAD"]


def test_dead_letters_of_different_events_lie_apart() -> None:
    places = {dead_subject("notify-done", subject(an_event(name))) for name in ("completed", "failed", "cancelled")}

    assert len(places) == 3
