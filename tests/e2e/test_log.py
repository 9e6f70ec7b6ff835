"""The log: streams, accept-once, first-terminal-wins, history; against a real nats-server."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from engine.adapters.bus import Bus
from engine.adapters.history import History
from engine.contract.errors import Conflict, NotFound, Unavailable
from engine.contract.events import Event, job_event
from engine.contract.job import State, derived_id
from engine.contract.settings import Settings
from engine.contract.streams import STREAMS, alarm_subjects
from tests.make import JOB, TENANT, a_request, an_event
from tests.servers import NatsServer, remove, wait_until

REQUESTED = f"cinevent.{TENANT}.{JOB}.requested.*"
DONE = f"cinevent.{TENANT}.{JOB}.done.*"
NUM_WRITERS = 50


def race(write: Callable[[int], int]) -> list[int | Conflict]:
    """What each of 50 writers, started together, got."""
    barrier = threading.Barrier(NUM_WRITERS)

    def one(number: int) -> int | Conflict:
        barrier.wait()
        try:
            return write(number)
        except Conflict as conflict:
            return conflict

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        return list(pool.map(one, range(NUM_WRITERS)))


def accept(bus: Bus, number: int) -> str:
    """A job of its own for every number; returns its id."""
    job = derived_id(TENANT, "test", str(number))
    bus.publish(an_event("requested", job=job), first=f"cinevent.{TENANT}.{job}.requested.*")
    return job


def test_of_50_writers_exactly_one_accepts_a_job(bus: Bus, history: History) -> None:
    priorities = ("high", "normal", "low")
    requests = [a_request(priority=priorities[n % 3], metadata={"writer": str(n)}) for n in range(NUM_WRITERS)]

    results = race(lambda n: bus.publish(an_event("requested", request=requests[n].to_json()), first=REQUESTED))

    winners = [n for n, result in enumerate(results) if isinstance(result, int)]
    assert len(winners) == 1
    assert history.get(TENANT, JOB).request == requests[winners[0]]


def test_of_50_final_events_exactly_one_wins(bus: Bus, history: History) -> None:
    bus.publish(an_event("requested"), first=REQUESTED)
    names = ("completed", "failed", "cancelled")

    results = race(lambda n: bus.publish(an_event(names[n % 3], attempt=n + 1), first=DONE))

    winners = [n for n, result in enumerate(results) if isinstance(result, int)]
    assert len(winners) == 1
    assert history.get(TENANT, JOB).outcome["attempt"] == winners[0] + 1


def test_writing_the_same_bytes_again_is_the_same_write(bus: Bus) -> None:
    event = an_event("requested")

    first = bus.publish(event, first=REQUESTED)

    assert bus.publish(event, first=REQUESTED) == first


def test_an_event_published_twice_stands_in_the_log_once(bus: Bus) -> None:
    event = an_event("launched", key="a1")

    assert bus.publish(event) == bus.publish(event)


def test_streams_and_consumers_are_made_once_and_stay(settings: Settings, bus: Bus) -> None:
    bus.publish(an_event("requested"))
    again = Bus.open(settings)
    try:
        assert again.bounds("CINEVENT_JOBS") == (1, 1)
        assert all(again.bounds(stream.name)[0] >= 0 for stream in STREAMS)
    finally:
        again.close()


def test_what_was_acknowledged_survives_kill_9(nats: NatsServer, bus: Bus, history: History) -> None:
    bus.publish(an_event("requested"), first=REQUESTED)

    nats.kill()
    nats.start()

    assert history.get(TENANT, JOB).state is State.PENDING


def test_without_a_server_a_write_is_unavailable_at_its_deadline(nats: NatsServer, bus: Bus) -> None:
    bus.ping()
    nats.kill()
    start = time.monotonic()

    with pytest.raises(Unavailable):
        bus.publish(an_event("requested"), deadline_s=0.5)

    # Well below the deadline that a write has of its own.
    assert 0.5 <= time.monotonic() - start < 3.0


def test_a_bus_goes_on_by_itself_when_the_server_is_back_without_its_data(nats: NatsServer, bus: Bus) -> None:
    bus.publish(an_event("requested"))
    nats.kill()
    remove(nats.directory / "jetstream")
    nats.start()

    assert bus.publish(an_event("launched"), deadline_s=10) == 1


def test_a_call_that_waits_while_the_bus_is_closed_is_unavailable(nats: NatsServer, settings: Settings) -> None:
    bus = Bus.open(settings)
    bus.ping()
    nats.kill()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bus.publish, an_event("requested"), deadline_s=30)
        wait_until(waiting.running)
        bus.close()

    assert isinstance(waiting.exception(), Unavailable)


def test_a_bus_that_the_server_sent_away_connects_again(bus: Bus) -> None:
    """nats-py closes for good on some of the server's errors; one is a message that only its headers make too large."""
    with pytest.raises(Unavailable):
        bus.publish_bytes("cinevent.a.b.launched", {"x": "y" * 1000}, b"x" * (2**20 - 500), deadline_s=1)

    assert bus.publish(an_event("launched"), deadline_s=10) == 1


def test_an_alarm_rings_once_at_its_time_and_a_new_one_replaces_it(bus: Bus) -> None:
    set_on, due_on = alarm_subjects(TENANT, JOB)
    event = job_event("check", {}, tenant=TENANT, job=JOB)
    for seconds in (60, 1):
        bus.publish_at(event, set_on=set_on, due_on=due_on, when=datetime.now(UTC) + timedelta(seconds=seconds))

    wait_until(lambda: bus.read("CINEVENT_ALARMS", matching=due_on), what="the alarm rings")

    assert len(bus.read("CINEVENT_ALARMS", matching="cinevent.alarms.>")) == 1


def test_history_pages_through_all_jobs_newest_first(bus: Bus, history: History) -> None:
    accepted = [accept(bus, number) for number in range(45)]
    seen: list[str] = []
    cursor = None
    while True:
        page = history.page(TENANT, limit=20, before=cursor)
        seen += [job.id for job in page.jobs]
        cursor = page.cursor
        if cursor is None:
            break

    assert seen == accepted[::-1]


def test_history_finds_jobs_behind_many_other_messages(bus: Bus, history: History) -> None:
    old = accept(bus, 1)
    for number in range(400):
        bus.publish(an_event("launched", job=old, key=f"a{number}"))
    new = accept(bus, 2)

    assert [job.id for job in history.page(TENANT, limit=2).jobs] == [new, old]


def test_a_tenant_sees_no_job_of_another(bus: Bus, history: History) -> None:
    job = accept(bus, 1)

    assert history.page("other", limit=10).jobs == []
    with pytest.raises(NotFound):
        history.get("other", job)


def test_progress_of_an_older_attempt_is_not_shown(bus: Bus, history: History) -> None:
    for event in (an_event("requested"), an_event("started"), an_event("progress"), an_event("retrying", attempt=2)):
        bus.publish(event)

    job = history.get(TENANT, JOB)

    assert (job.attempt, job.progress, job.state) == (2, {}, State.PENDING)


def test_a_failed_job_still_shows_how_far_it_came(bus: Bus, history: History) -> None:
    for name in ("requested", "started", "progress", "failed"):
        bus.publish(an_event(name, **({"attempt": 1} if name == "failed" else {})))

    [listed] = history.page(TENANT, limit=1).jobs

    assert history.get(TENANT, JOB) == listed
    assert (listed.state, listed.progress["step"]) == (State.FAILED, 3)


def test_live_events_arrive_from_the_moment_of_listening(bus: Bus) -> None:
    bus.publish(an_event("requested"))
    with bus.listen(f"cinevent.{TENANT}.{JOB}.>") as next_event:
        bus.publish(an_event("launched"))
        event: Event | None = next_event(2.0)

    assert event is not None
    assert event.name == "launched"
