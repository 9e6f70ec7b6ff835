"""The published schemas: one per event, on disk as in the code, and events are held to them."""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.errors import JOB_ERRORS, BadEvent
from engine.contract.events import EVENTS, REQUEST_TYPE, SCHEMA_BASE
from engine.contract.models import CATALOG
from engine.contract.schemas import published, validate
from tests.make import a_body, an_event, an_input_for
from tests.unit.values import any_json

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"
Field = tuple[str, ...]


def required_fields(schema: dict[str, Any], at: Field = ()) -> Iterator[Field]:
    """Where a schema demands a field, at every depth."""
    yield from ((*at, name) for name in schema.get("required", ()))
    for name, inner in schema.get("properties", {}).items():
        yield from required_fields(inner, (*at, name))


def without(data: dict[str, Any], field: Field) -> dict[str, Any]:
    """The data without one field."""
    changed = copy.deepcopy(data)
    inner = changed
    for name in field[:-1]:
        inner = inner[name]
    del inner[field[-1]]
    return changed


REQUIRED = [(name, field) for name in EVENTS for field in required_fields(published()[f"job.{name}.v1.json"])]


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_names_the_schema_that_it_keeps(name: str) -> None:
    event = an_event(name)

    assert validate(event) is event
    assert event.dataschema == published()[f"job.{name}.v1.json"]["$id"]


@pytest.mark.parametrize(("name", "field"), REQUIRED, ids=[f"{name}-{'.'.join(field)}" for name, field in REQUIRED])
def test_an_event_without_a_required_field_is_refused(name: str, field: Field) -> None:
    event = an_event(name)
    event = replace(event, data=without(dict(event.data), field))

    with pytest.raises(BadEvent) as caught:
        validate(event)

    assert [problem.rule for problem in caught.value.problems] == ["required"]


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_may_grow_fields(name: str) -> None:
    assert validate(an_event(name, color="blue")).data["color"] == "blue"


def test_an_event_of_another_type_is_not_judged() -> None:
    event = replace(an_event("started"), type=REQUEST_TYPE, data={"anything": 1})

    assert validate(event) is event


@pytest.mark.parametrize(
    ("name", "over", "pointer"),
    [
        ("started", {"job": "j1"}, "/job"),
        ("started", {"attempt": 0}, "/attempt"),
        ("progress", {"percent": 100.5}, "/percent"),
        ("progress", {"stage": "dreaming"}, "/stage"),
        ("progress", {"eta_s": -1}, "/eta_s"),
        ("failed", {"error": {"code": "Out of memory", "message": ""}}, "/error/code"),
        ("completed", {"timings": {"loading": "2 s"}}, "/timings/loading"),
    ],
)
def test_a_field_of_another_form_is_refused_with_its_place(name: str, over: dict[str, Any], pointer: str) -> None:
    with pytest.raises(BadEvent) as caught:
        validate(an_event(name, **over))

    assert [problem.pointer for problem in caught.value.problems] == [pointer]


def test_what_is_not_known_yet_is_null() -> None:
    validate(an_event("progress", eta_s=None, seconds_per_step=None))


@given(st.sampled_from(sorted(EVENTS)), st.dictionaries(st.text(), any_json))
def test_any_data_is_taken_or_refused(name: str, data: dict[str, Any]) -> None:
    event = replace(an_event(name), data={**an_event(name).data, **data})

    try:
        answer: object = validate(event)
    except BadEvent as error:
        answer = error.problems

    assert answer


@pytest.mark.parametrize("file", published())
def test_a_published_schema_is_itself_valid_and_says_where_it_is(file: str) -> None:
    schema = published()[file]

    jsonschema_rs.meta.validate(schema)
    assert schema["$id"] == SCHEMA_BASE + file


@pytest.mark.parametrize("model", CATALOG)
def test_the_request_schema_takes_a_request_for_each_model(model: str) -> None:
    validator = jsonschema_rs.validator_for(published()["job.request.v1.json"])

    body = a_body(model=model, input=an_input_for(model))
    assert validator.is_valid(body)
    assert not validator.is_valid({**body, "size": "720p"})


def test_the_published_files_are_the_schemas_of_the_code() -> None:
    """`make docs` writes them."""
    on_disk = {path.name: json.loads(path.read_text()) for path in FOLDER.iterdir()}

    assert on_disk == published()


def test_error_codes_keep_their_pattern_and_are_explained() -> None:
    error = published()["job.failed.v1.json"]["properties"]["error"]["properties"]

    assert [code for code in JOB_ERRORS if not re.fullmatch(error["code"]["pattern"], code)] == []
    assert [
        code for code, text in JOB_ERRORS.items() if not text.endswith((" Tried again.", " Not tried again."))
    ] == []
