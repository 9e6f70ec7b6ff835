"""The source, against a real nats-server and real HTTP: what is delivered, when, in which order, what is kept."""

import socket
import struct
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from engine.adapters.bus import Bus
from engine.adapters.dead import dead_letters, redrive
from engine.adapters.history import REDRIVE_HEADER
from engine.contract.codec import decode, decode_batch, encode_nats
from engine.contract.events import Event, subject
from engine.contract.settings import Settings
from engine.contract.streams import alarm_subjects
from tests.e2e.sources import (
    DEAD,
    NOTHING,
    cancel,
    done,
    ids,
    in_hand,
    in_turn,
    publish,
    raw_server,
    requested,
    source_thread,
    the_dead,
    with_jetstream,
)
from tests.make import JOB, TENANT, an_event
from tests.servers import Received, Sink, wait_until


@pytest.fixture
def sink(sink: Sink) -> Sink:
    """A sink that a whole hand may connect to at once; with a shorter queue, some connect only a second later."""
    sink._server.socket.listen(128)
    return sink


def test_an_idle_source_posts_an_event_at_once_in_binary_mode_and_acknowledges(
    bus: Bus, sink: Sink, settings: Settings
) -> None:
    event = cancel(1)
    with source_thread("cancels", settings, sink.url, extensions={"cluster": "here"}):
        publish(bus, cancel(0))
        wait_until(lambda: len(sink.received) == 1)
        before = time.monotonic()
        publish(bus, event)
        wait_until(lambda: len(sink.received) == 2)
        wait_until(lambda: in_hand(settings, "dispatch-cancel") == NOTHING)

    post = sink.received[1]
    assert decode(post.headers, post.body) == Event(**{**fields(event), "extensions": {"cluster": "here"}})
    assert post.headers["content-type"] == "application/json"
    # Well below the pull's own expiry and every backoff.
    assert post.at - before < 3.0


def fields(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__slots__}


def test_each_failure_makes_that_event_alone_wait_and_then_it_is_delivered_once(bus: Bus, settings: Settings) -> None:
    names = ("404", "503", "reset", "silence", "none")
    events = {cancel(n).id: name for n, name in enumerate(names)}
    got: list[tuple[str, float]] = []

    def serve(connection: socket.socket, request: bytes) -> None:
        name = events[next(i for i in events if i.encode() in request)]
        got.append((name, time.monotonic()))
        is_first = [n for n, _ in got].count(name) == 1
        misbehave(name if is_first else "none", connection)

    with raw_server(serve) as url, source_thread("cancels", settings, url, timeout_s=0.5):
        publish(bus, *(cancel(n) for n in range(len(names))))
        wait_until(lambda: in_hand(settings, "dispatch-cancel") == NOTHING and len(got) == 9)

    assert Counter(name for name, _ in got) == {"404": 2, "503": 2, "reset": 2, "silence": 2, "none": 1}
    first, second = (at for name, at in got if name == "503")
    # What the sink asked for; the backoff alone would be half a second.
    assert 1.0 <= second - first < 5.0


def misbehave(name: str, connection: socket.socket) -> None:
    """Answer as `name` says."""
    replies = {
        "404": b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        "503": b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
        "none": b"HTTP/1.1 204 No Content\r\n\r\n",
    }
    if name == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif name == "silence":
        # Until the other side gives up.
        connection.recv(1)
    else:
        connection.sendall(replies[name])


def test_a_429_pauses_the_whole_source_and_keeps_the_order(bus: Bus, sink: Sink, settings: Settings) -> None:
    sink.answer = in_turn((429, {"retry-after": "1"}), (429, {}), (204, {}))
    with source_thread("requests", settings, sink.url):
        low = publish(bus, *(requested(n, "low") for n in range(3)))
        wait_until(lambda: sink.received)
        high = publish(bus, requested(0, "high"))
        wait_until(lambda: in_hand(settings, "dispatch-low") == NOTHING)

    times = [post.at for post in sink.received]
    assert all(0.95 < pause < 3.0 for pause in (times[1] - times[0], times[2] - times[1]))
    assert ids(sink) == [low[0], *high, *high, *low]


def test_after_a_pause_one_letter_goes_ahead_and_the_rest_follow_its_answer(
    bus: Bus, sink: Sink, settings: Settings
) -> None:
    num_at_answer: list[int] = []
    all_came = threading.Event()

    def answer(_: Received) -> tuple[int, dict[str, str]]:
        if len(sink.received) <= 4:
            all_came.wait(5)
            return 429, {"retry-after": "0"}
        if not num_at_answer:
            # Long enough for the others to come, if they did not wait.
            time.sleep(0.3)
            num_at_answer.append(len(sink.received))
        return 204, {}

    sink.answer = answer
    with source_thread("cancels", settings, sink.url):
        sent = publish(bus, *(cancel(n) for n in range(4)))
        wait_until(lambda: len(sink.received) == 4)
        all_came.set()
        wait_until(lambda: in_hand(settings, "dispatch-cancel") == NOTHING)

    assert num_at_answer == [5]
    assert ids(sink)[4] == sent[0]
    assert sorted(ids(sink)[4:]) == sorted(sent)


def test_a_refused_event_becomes_a_dead_letter_with_the_reason(bus: Bus, sink: Sink, settings: Settings) -> None:
    event, (set_on, due_on) = an_event("check"), alarm_subjects(TENANT, JOB)
    sink.answer = lambda _: (400, {})
    with source_thread("alarms", settings, sink.url):
        bus.publish_at(event, set_on=set_on, due_on=due_on, when=datetime.now(UTC))
        wait_until(lambda: the_dead(bus))
        wait_until(lambda: in_hand(settings, "dispatch-alarms") == NOTHING)

    (letter,) = dead_letters(bus, limit=10)
    assert (letter.consumer, letter.tries, letter.subject) == ("dispatch-alarms", 1, due_on)
    assert letter.reason == "HTTP 400:"
    assert letter.body == encode_nats(event)[1]
    headers = the_dead(bus)[0].headers
    assert not [name for name in headers if name.startswith("Nats-Schedule")]
    assert headers["Nats-Msg-Id"].startswith("CINEVENT_ALARMS:dispatch-alarms:")
    assert len(sink.received) == 1


def test_the_reason_has_the_first_bytes_of_the_answer_in_one_line(bus: Bus, settings: Settings) -> None:
    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 422 No\r\ncontent-length: 100000\r\n\r\nno\r\nsuch \xff model" + b"." * 5000)

    with raw_server(serve) as url, source_thread("cancels", settings, url):
        publish(bus, cancel(1))
        wait_until(lambda: the_dead(bus))

    (letter,) = dead_letters(bus, limit=10)
    assert letter.reason.startswith("HTTP 422: no such ? model....")
    assert len(letter.reason) == 300


def test_after_its_last_try_an_event_is_a_dead_letter_and_nothing_else(
    bus: Bus, sink: Sink, settings: Settings
) -> None:
    sink.answer = lambda _: (500, {"retry-after": "0"})
    with source_thread("cancels", settings, sink.url):
        sent = publish(bus, cancel(1))
        wait_until(lambda: the_dead(bus))
        wait_until(lambda: in_hand(settings, "dispatch-cancel") == NOTHING)

    (letter,) = dead_letters(bus, limit=10)
    assert (letter.tries, letter.reason) == (len(sink.received), f"{letter.tries} tries, the last one: HTTP 500:")
    assert set(ids(sink)) == set(sent)


def test_bytes_that_are_no_event_are_a_dead_letter_and_never_posted(bus: Bus, sink: Sink, settings: Settings) -> None:
    with source_thread("cancels", settings, sink.url):
        bus.publish_bytes(subject(cancel(1)), {"x-from": "elsewhere"}, b"\xff no event")
        wait_until(lambda: the_dead(bus))
        wait_until(lambda: in_hand(settings, "dispatch-cancel") == NOTHING)

    (letter,) = dead_letters(bus, limit=10)
    assert letter.reason.startswith("not an event: ")
    assert (letter.body, the_dead(bus)[0].headers["x-from"]) == (b"\xff no event", "elsewhere")
    assert sink.received == []


def test_a_message_too_large_for_a_dead_letter_is_reported_without_its_body(
    bus: Bus, sink: Sink, settings: Settings
) -> None:
    body = b"x" * (2**20 - 100)
    with source_thread("cancels", settings, sink.url):
        bus.publish_bytes(subject(cancel(1)), {"x-from": "elsewhere"}, body)
        wait_until(lambda: the_dead(bus))
        wait_until(lambda: in_hand(settings, "dispatch-cancel") == NOTHING)

    assert the_dead(bus)[0].body == b""
    assert the_dead(bus)[0].headers["Cinevent-Dead-Omitted"] == f"the body of {len(body)} bytes"


def test_without_a_stream_for_dead_letters_nothing_is_lost(bus: Bus, sink: Sink, settings: Settings) -> None:
    sink.answer = in_turn((204, {}), (400, {}))
    with source_thread("cancels", settings, sink.url):
        publish(bus, cancel(0))
        wait_until(lambda: sink.received)
        with_jetstream(settings, lambda js: js.delete_stream(DEAD))
        lost = publish(bus, cancel(1))
        wait_until(lambda: len(sink.received) == 3)
        wait_until(lambda: the_dead(bus))

    assert ids(sink)[1:] == lost * 2


def test_a_backlog_is_shared_6_to_3_to_1(bus: Bus, sink: Sink, settings: Settings) -> None:
    def answer(_: Received) -> tuple[int, dict[str, str]]:
        time.sleep(0.02)
        return 204, {}

    sink.answer = answer
    priorities = {i: p for p in ("high", "normal", "low") for i in publish(bus, *(requested(n, p) for n in range(40)))}
    with source_thread("requests", settings, sink.url):
        wait_until(lambda: len(sink.received) >= 50)

    shares = Counter(priorities[i] for i in ids(sink)[:50])
    assert 27 <= shares["high"] <= 33
    assert 12 <= shares["normal"] <= 18
    assert 3 <= shares["low"] <= 7


def test_a_source_takes_no_more_than_its_slots(bus: Bus, sink: Sink, settings: Settings) -> None:
    may_answer = threading.Event()

    def answer(_: Received) -> tuple[int, dict[str, str]]:
        may_answer.wait(10)
        return 204, {}

    sink.answer = answer
    sent = publish(bus, *(cancel(n) for n in range(40)))
    with source_thread("cancels", settings, sink.url):
        wait_until(lambda: len(sink.received) == 4)
        assert in_hand(settings, "dispatch-cancel") == (4, 36)
        may_answer.set()
        wait_until(lambda: in_hand(settings, "dispatch-cancel") == NOTHING)

    assert sorted(ids(sink)) == sorted(sent)


def test_a_redriven_event_is_delivered_by_its_own_consumer_only(bus: Bus, sink: Sink, settings: Settings) -> None:
    event, other = cancel(1), cancel(2)
    headers, body = encode_nats(other)
    sink.answer = in_turn((400, {}), (204, {}))
    with source_thread("cancels", settings, sink.url):
        publish(bus, event)
        wait_until(lambda: the_dead(bus))
        bus.publish_bytes(subject(other), {**headers, REDRIVE_HEADER: "dispatch-high"}, body)
        redrive(bus, the_dead(bus)[0].sequence)
        wait_until(lambda: len(sink.received) == 2)
        wait_until(lambda: in_hand(settings, "dispatch-cancel") == NOTHING)

    assert ids(sink) == [event.id, event.id]


def test_what_came_together_goes_as_a_batch_and_one_answer_is_for_all(bus: Bus, sink: Sink, settings: Settings) -> None:
    sent = publish(bus, *(done(n) for n in range(250)))
    with source_thread("outcomes", settings, sink.url):
        wait_until(lambda: in_hand(settings, "notify-done") == NOTHING)

    batches = [decode_batch(post.headers, post.body) for post in sink.received]
    assert sorted(event.id for batch in batches for event in batch) == sorted(sent)
    assert 3 <= len(batches) < 50
    assert max(len(batch) for batch in batches) <= 100


def test_what_is_refused_in_a_batch_takes_no_other_along(bus: Bus, sink: Sink, settings: Settings) -> None:
    bad = done(3).id
    sink.answer = lambda post: (400 if bad.encode() in post.body + str(post.headers).encode() else 204, {})
    publish(bus, *(done(n) for n in range(20)))
    with source_thread("outcomes", settings, sink.url):
        wait_until(lambda: the_dead(bus))
        wait_until(lambda: in_hand(settings, "notify-done") == NOTHING)

    (letter,) = dead_letters(bus, limit=30)
    assert bad.encode() in letter.body
