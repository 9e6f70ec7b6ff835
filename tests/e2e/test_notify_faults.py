"""Webhooks while everything fails: nothing is lost, and nothing comes twice without a kill.

bench/notify_faults.py is the same at full size.
"""

from pathlib import Path

from tests import faults


def test_every_event_reaches_every_endpoint_exactly_once_although_a_third_of_the_answers_fail(tmp_path: Path) -> None:
    found = faults.run(tmp_path, num_events=150, num_kills=0, seed=5, timeout_s=60)

    assert (found.missing, found.unasked, found.ledger.num_wrong) == (set(), set(), 0)
    assert found.num_duplicates == 0
    # The faults did happen, each of them.
    assert min(found.ledger.answers[fault] for fault in faults.FAULTS) > 0


def test_nothing_is_lost_when_notify_its_sources_and_the_log_are_killed_at_random(tmp_path: Path) -> None:
    found = faults.run(tmp_path, num_events=150, num_kills=5, seed=7, timeout_s=90)

    assert (found.missing, found.unasked, found.ledger.num_wrong) == (set(), set(), 0)
    assert found.num_duplicates <= found.most_duplicates
