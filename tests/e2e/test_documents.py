"""The documents that submit serves about itself are valid, whole, and true of what it answers."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import validate

from engine.contract.events import EVENTS
from engine.contract.schemas import published
from functions.submit import asyncapi, openapi
from functions.submit.app import ROUTES
from tests.e2e.door import Door


def test_the_openapi_document_is_valid_and_has_every_route(door: Door) -> None:
    served = door.http.get("/openapi.json").json

    validate(served)
    assert served == openapi.document(ROUTES)
    found = {(method.upper(), path) for path, methods in served["paths"].items() for method in methods}
    assert found == {(route.method, re.sub(r"<(\w+)>", r"{\1}", route.path)) for route in ROUTES}
    assert set(served["webhooks"]) == {"completed", "failed", "cancelled"}


def test_every_schema_that_is_named_is_there(door: Door) -> None:
    text = door.http.get("/openapi.json").text

    named = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert named == set(json.loads(text)["components"]["schemas"]) - {"Model"} | ({"Model"} & named)


def test_the_asyncapi_document_has_every_subject_and_its_stream(door: Door) -> None:
    served = door.http.get("/asyncapi.json").json

    assert served == json.loads(json.dumps(asyncapi.document()))
    addresses = {name: channel["address"] for name, channel in served["channels"].items()}
    assert set(addresses) == {name for name, kind in EVENTS.items() if kind.suffix} | {"webhook"}
    assert addresses["requested"] == "cinevent.{tenant}.{job}.requested.{priority}"
    assert served["channels"]["progress"]["x-jetstream"]["stream"] == "CINEVENT_PROGRESS"
    assert [pointer for pointer in references(served) if resolve(served, pointer) is None] == []


def test_schemas_are_served_under_their_names(door: Door) -> None:
    name = "job.completed.v1.json"

    assert door.http.get(f"/schemas/{name}").json == published()[name]
    assert door.http.get("/schemas/none.json").status_code == 404


def test_the_page_names_every_route_and_needs_nothing_from_elsewhere(door: Door) -> None:
    page = door.http.get("/docs")

    assert page.content_type == "text/html; charset=utf-8"
    assert [route.path for route in ROUTES if re.sub(r"<(\w+)>", r"{\1}", route.path) not in page.text] == []
    assert re.findall(r"(?:src|href)=\"(?:https?:)?//", page.text) == []
    assert "<script" not in page.text
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(whole: Any, pointer: str) -> Any:
    found = whole
    for part in pointer.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found


@pytest.mark.parametrize("path", ["/openapi.json", "/asyncapi.json", "/docs", "/schemas/job.request.v1.json"])
def test_documents_may_be_read_by_everybody(door: Door, path: str, tmp_path: Any) -> None:
    from functions.keys import add_key, new_key
    from tests.e2e.door import a_door

    key, _ = new_key(tenant="acme", scopes=["read"], expires_at=None, note="")
    add_key(tmp_path / "keys.json", key)
    closed = a_door(door.deps.bus, door.deps.settings, keys_file=str(tmp_path / "keys.json"))

    assert closed.http.get(path).status_code == 200
    assert closed.http.get("/api/v1/jobs").status_code == 401
