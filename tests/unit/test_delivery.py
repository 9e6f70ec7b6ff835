"""Deliveries as values: answers judged, waits, dead letters, and whose turn it is."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.codec import encode
from engine.contract.errors import Invalid
from engine.contract.streams import CONSUMERS, SOURCES
from functions.delivery import (
    LINGER_S,
    Accepted,
    Answer,
    Dead,
    Gate,
    Hand,
    Letter,
    Paused,
    Rota,
    Turn,
    Waits,
    backoff_s,
    dead_letter,
    judge,
    one_line,
    retry_after_s,
)
from functions.sink import Target
from tests.make import an_event


def a_letter(hand: Hand, sequence: int) -> Letter:
    """A letter of this hand's consumer."""
    event = an_event("requested")
    return Letter(consumer=hand.consumer, sequence=sequence, tries=1, event=event, body=encode(event)[1], message=None)


def full_hands() -> list[Hand]:
    """The hands of the requests source, each with 100 letters in line."""
    hands = [Hand(CONSUMERS[name]) for name in SOURCES["requests"].consumers]
    for hand in hands:
        for sequence in range(100):
            hand.offer(a_letter(hand, sequence))
    return hands


def take(rota: Rota, number: int) -> list[Turn]:
    """The next turns."""
    return [turn for turn in (rota.next() for _ in range(number)) if turn]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, Accepted) for status in (200, 202, 204, 299)),
        (429, Paused),
        *((status, Waits) for status in (0, 404, 408, 409, 425, 500, 503, 599)),
        *((status, Dead) for status in (100, 301, 307, 400, 401, 403, 410, 413, 415, 422)),
    ],
)
def test_the_status_decides(status: int, kind: type) -> None:
    assert isinstance(judge(Answer(status=status, text="why"), tries=1, max_tries=2), kind)


def test_the_last_try_decides_over_waiting_but_not_over_a_pause() -> None:
    silence = Answer(status=0, text="TimeoutError no\nword")

    assert judge(silence, tries=3, max_tries=3) == Dead(why="3 tries, the last one: no answer: TimeoutError no word")
    assert judge(Answer(status=429), tries=3, max_tries=3) == Paused(after_s=1.0)


@pytest.mark.parametrize(("given_s", "pause_s"), [("7", 7.0), ("600", 60.0), ("0", 0.1), ("soon", 1.0)])
def test_a_pause_is_as_long_as_asked_within_bounds(given_s: str, pause_s: float) -> None:
    assert judge(Answer(status=429, retry_after=given_s), tries=1, max_tries=2) == Paused(after_s=pause_s)


@pytest.mark.parametrize(("text", "seconds"), [("3", 3.0), ("0", 0.0), ("-3", 0.0), ("9" * 400, 3600.0)])
def test_retry_after_in_seconds_is_read(text: str, seconds: float) -> None:
    assert retry_after_s(text, max_s=3600) == seconds


@pytest.mark.parametrize("text", [None, "", "soon", "nan", "Fri, 99 Nov 2026 10:00:00 GMT"])
def test_an_unreadable_retry_after_is_none(text: str | None) -> None:
    assert retry_after_s(text, max_s=3600) is None


def test_retry_after_as_a_date_is_read() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)

    seconds = retry_after_s(date, max_s=3600)

    assert seconds is not None
    assert 98 <= seconds <= 100


@given(st.integers(min_value=1, max_value=10**6))
def test_waits_double_with_jitter_up_to_ten_minutes(tries: int) -> None:
    full_s = min(0.5 * 2 ** (min(tries, 50) - 1), 600)

    assert full_s / 2 <= backoff_s(tries) <= full_s


@given(st.text())
def test_a_reason_fits_into_a_header(text: str) -> None:
    line = one_line(text)

    assert len(line) <= 300
    assert line == "" or (line.isascii() and line.isprintable())


@given(st.integers(min_value=0, max_value=300))
def test_a_dead_letter_is_never_larger_than_the_server_takes(length: int) -> None:
    facts = {"Cinevent-Dead-Reason": "why"}
    headers, body = dead_letter({"x": "y", "Nats-Schedule": "@at"}, b"b" * length, facts, max_bytes=250)

    size = 12 + sum(len(f"{name}: {value}\r\n") for name, value in headers.items()) + len(body)
    assert size <= 250
    assert (body == b"b" * length and headers == {"x": "y", **facts}) or "Cinevent-Dead-Omitted" in headers


def test_a_hand_lines_up_by_sequence() -> None:
    hand = Hand(CONSUMERS["notify-done"])
    for sequence in (5, 2, 9, 1):
        hand.offer(a_letter(hand, sequence))

    assert [letter.sequence for _ in range(2) for letter in hand.take(2)] == [1, 2, 5, 9]


def test_a_turn_takes_a_batch_where_the_consumer_has_batches() -> None:
    hand = Hand(CONSUMERS["notify-deliveries"])
    for sequence in range(130):
        hand.offer(a_letter(hand, sequence))

    assert [len(turn.letters) for turn in take(Rota(hands=[hand]), 2)] == [100, 30]


def test_a_hand_with_all_its_posts_under_way_waits_for_an_answer() -> None:
    hand = Hand(CONSUMERS["notify-deliveries"])
    hand.offer(a_letter(hand, 1))
    hand.num_posts = hand.consumer.posts

    assert not hand.is_ready()


def test_letters_gather_for_a_moment_while_a_post_is_under_way() -> None:
    hand = Hand(CONSUMERS["notify-deliveries"])
    hand.offer(a_letter(hand, 1), now=5.0)
    assert hand.is_ready(5.0)
    hand.num_posts = 1
    assert [hand.is_ready(5.0), hand.is_ready(5.0 + LINGER_S)] == [False, True]

    for sequence in range(2, 101):
        hand.offer(a_letter(hand, sequence), now=5.0)

    assert hand.is_ready(5.0)


def test_every_ten_turns_are_shared_6_to_3_to_1() -> None:
    turns = take(Rota(hands=full_hands()), 100)

    for start in range(0, 100, 10):
        shares = Counter(turn.hand.consumer.name for turn in turns[start : start + 10])
        assert shares == {"dispatch-high": 6, "dispatch-normal": 3, "dispatch-low": 1}


@given(st.lists(st.booleans(), max_size=200))
def test_refused_turns_change_no_share_and_no_order(refusals: list[bool]) -> None:
    rota, accepted = Rota(hands=full_hands()), []
    for is_refused in refusals:
        (turn,) = take(rota, 1)
        if is_refused:
            rota.undo(turn)
        else:
            accepted.append(turn.letters)

    assert accepted == [turn.letters for turn in take(Rota(hands=full_hands()), len(accepted))]


def test_turns_that_went_together_can_be_refused_together() -> None:
    rota = Rota(hands=full_hands())
    for turn in take(rota, 10):
        rota.undo(turn)

    assert [t.letters for t in take(rota, 10)] == [t.letters for t in take(Rota(hands=full_hands()), 10)]


def test_an_open_gate_lets_everybody_through() -> None:
    assert Gate().wait_s(0.0) == 0.0


def test_after_the_pause_one_letter_goes_and_its_answer_opens_the_gate() -> None:
    gate = Gate()
    late, ahead = take(Rota(hands=full_hands()), 2)
    gate.shut(10.0)
    assert gate.wait_s(4.0) == 6.0

    gate.go(ahead)
    gate.passed(late)
    assert gate.wait_s(10.0) == float("inf")

    gate.passed(ahead)
    assert gate.wait_s(10.0) == 0.0


def test_a_second_refusal_shuts_the_gate_again_for_the_longer_pause() -> None:
    gate = Gate()
    gate.shut(10.0)
    gate.go(take(Rota(hands=full_hands()), 1)[0])
    gate.shut(5.0)

    assert gate.wait_s(6.0) == 4.0


def test_knatives_variables_are_read() -> None:
    target = Target.read({"K_SINK": "http://sink/", "K_CE_OVERRIDES": '{"extensions": {"cluster": "here"}}'})

    assert target == Target(url="http://sink/", extensions={"cluster": "here"})


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"extensions": {"Bad": "x"}}', '{"extensions": {"id": "x"}}', '{"extensions": {"a": "x\\ny"}}'],
)
def test_wrong_overrides_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="K_CE_OVERRIDES"):
        Target.read({"K_SINK": "http://sink/", "K_CE_OVERRIDES": text})
