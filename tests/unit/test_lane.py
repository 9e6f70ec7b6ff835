"""Lanes: what one endpoint bears, with time as a number."""

import pytest

from functions.notify.lane import Lane


def failed(lane: Lane, times: int, *, at: float = 0.0) -> None:
    for _ in range(times):
        lane.begin()
        lane.end(at, is_success=False, took_s=0.1)


def test_ten_failures_in_a_row_open_the_breaker_and_fewer_do_not() -> None:
    lane = Lane(concurrency=10)
    failed(lane, 9)
    assert lane.wait_s(0.0) == 0.0
    failed(lane, 1)
    assert lane.wait_s(0.0) >= 5.0


def test_one_probe_at_a_time_finds_out_whether_it_is_back() -> None:
    lane = Lane(concurrency=10)
    failed(lane, 10)
    assert lane.wait_s(5.1) == 0.0
    lane.begin()
    assert lane.wait_s(5.1) > 0.0

    lane.end(5.2, is_success=True, took_s=0.1)

    assert lane.wait_s(5.2) == 0.0
    failed(lane, 9, at=5.3)
    assert lane.wait_s(5.3) == 0.0


def test_a_probe_that_fails_opens_it_for_twice_as_long_up_to_ten_minutes() -> None:
    lane, now = Lane(concurrency=10), 0.0
    failed(lane, 10)
    waits = []
    for _ in range(10):
        now += 1000.0
        failed(lane, 1, at=now)
        waits.append(lane.wait_s(now))

    assert 10.0 <= waits[0] <= 15.0
    assert all(600.0 <= wait <= 900.0 for wait in waits[-2:])


def test_a_success_between_failures_keeps_it_closed() -> None:
    lane = Lane(concurrency=10)
    for _ in range(5):
        failed(lane, 9)
        lane.begin()
        lane.end(0.0, is_success=True, took_s=0.1)

    assert lane.wait_s(0.0) == 0.0


def test_turns_are_given_at_the_rate_and_nobody_waits_longer_than_bearable() -> None:
    lane = Lane(concurrency=10, rate_per_minute=60)

    waits = [lane.slot_s(0.0, patience_s=2.0) for _ in range(6)]

    # The first three take a turn each; the others are sent away, each to a time of its own.
    assert waits[:3] == [0.0, 1.0, 2.0]
    assert waits[3:] == [4.0, 5.0, 6.0]


def test_without_a_rate_there_is_no_waiting() -> None:
    lane = Lane(concurrency=10)

    assert {lane.slot_s(0.0, patience_s=1.0) for _ in range(100)} == {0.0}


@pytest.mark.parametrize(("num_slow", "is_stuck"), [(0, False), (9, False), (10, True)])
def test_it_is_stuck_when_nobody_waits_for_any_of_those_under_way(num_slow: int, is_stuck: bool) -> None:
    assert Lane(concurrency=10, num_slow=num_slow).is_stuck is is_stuck


def test_those_that_find_no_place_come_again_one_behind_the_other() -> None:
    lane = Lane(concurrency=10)

    waits = [lane.queue_s(0.0) for _ in range(1000)]

    # At a tenth of a second each, ten at a time.
    assert 9.0 <= waits[-1] <= 11.0


def test_a_batch_waits_for_usual_progress_and_less_for_one_that_hangs() -> None:
    lane = Lane(concurrency=10)
    assert lane.patience_s(1, most_s=1.0) < lane.patience_s(5, most_s=1.0) < lane.patience_s(100, most_s=1.0) == 1.0

    lane.num_slow = 5

    assert lane.patience_s(100, most_s=1.0) == 0.25
