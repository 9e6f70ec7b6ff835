"""What is read of the objects of a run: the golden table, and what every row of it must be."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from engine.contract.errors import JOB_ERRORS
from engine.contract.schemas import WAITING
from functions.dispatch.launcher import Phase
from functions.dispatch.launchers.classify import classify
from functions.dispatch.launchers.pods import waiting
from tests.golden_write import golden_runs
from tests.make import AT
from tests.runs import CASES

GOLDEN = dict(golden_runs())
BY_NAME = {name: classify(case.evidence, now=case.now) for name, case in CASES.items()}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_what_is_read_and_made_is_as_the_golden_file_says(path: Path) -> None:
    """`make golden` writes it."""
    assert json.loads(path.read_text()) == json.loads(GOLDEN[path])


@pytest.mark.parametrize("name", CASES)
def test_every_state_has_a_stated_outcome(name: str) -> None:
    seen = BY_NAME[name]
    failures = [why for why in (seen.failure, seen.waiting and seen.waiting.failure) if why]

    assert seen.phase is not Phase.ABSENT
    assert (seen.phase is Phase.WAITING, seen.phase is Phase.FAILED) == (bool(seen.waiting), bool(seen.failure))
    assert [why.code for why in failures if why.code not in JOB_ERRORS] == []
    assert [why.message for why in failures if len(why.message) < 20] == []


@pytest.mark.parametrize("reason", WAITING)
def test_every_reason_to_wait_has_a_patience_and_a_failure(reason: str) -> None:
    why = waiting(reason, "because", since=AT)

    assert why.patience_s > 0
    assert why.failure.code in JOB_ERRORS
    # What another attempt cannot mend says what somebody has to do.
    assert "; " in why.failure.message


def test_every_reason_is_met_in_the_golden_table() -> None:
    assert {seen.waiting.reason for seen in BY_NAME.values() if seen.waiting} == set(WAITING)


def test_a_wait_begins_with_its_cause_and_not_with_each_look() -> None:
    case = CASES["unschedulable"]

    looks = [classify(case.evidence, now=case.now + timedelta(hours=hours)).waiting for hours in (0, 1)]

    assert looks[0] == looks[1]


def test_a_node_that_does_not_confirm_is_lost_only_after_its_pods_grace() -> None:
    case = CASES["node lost, pods marked"]

    assert classify(case.evidence, now=case.now - timedelta(seconds=21)).phase is Phase.RUNNING
    assert classify(case.evidence, now=case.now).phase is Phase.FAILED


def test_pods_without_any_status_are_starting() -> None:
    case = CASES["running"]
    bare = [{"metadata": pod["metadata"]} for pod in case.evidence.pods]

    assert classify(replace(case.evidence, pods=bare), now=case.now).waiting.reason == "starting"
