"""The bytes that other programs read: every event type is on the wire what its golden file says."""

import json

import pytest

from engine.contract.codec import decode
from tests.golden_write import FOLDER, FORMS, golden_events, golden_files

EVENTS = golden_events()


def test_there_is_one_golden_file_per_event_and_no_other() -> None:
    assert {path for path, _ in golden_files()} == set(FOLDER.glob("event.*.json"))


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("form", FORMS)
def test_an_event_is_written_byte_for_byte_as_the_golden_one(form: str, name: str) -> None:
    golden = json.loads((FOLDER / f"event.{name}.json").read_text())[form]

    headers, body = FORMS[form](EVENTS[name])

    assert headers == golden["headers"]
    assert body == golden["body"].encode()


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("form", FORMS)
def test_a_golden_event_is_read_back(form: str, name: str) -> None:
    golden = json.loads((FOLDER / f"event.{name}.json").read_text())[form]

    assert decode(golden["headers"], golden["body"].encode()) == EVENTS[name]
