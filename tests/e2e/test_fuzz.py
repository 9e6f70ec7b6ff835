"""A small slice of `make fuzz`: a few generated requests per route, each answer against submit's own document."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from engine.adapters.bus import Bus
from engine.contract.codec import STRUCTURED
from engine.contract.settings import Settings
from functions.submit.app import ROUTES
from tests.e2e.door import a_door
from tests.fuzz import EXCLUDED

OPERATIONS = [(route.method, route.path.replace("<", "{").replace(">", "}")) for route in ROUTES]


@pytest.fixture(scope="module")
def described(shared_bus: Bus, shared_settings: Settings) -> Any:
    return schemathesis.openapi.from_wsgi("/openapi.json", a_door(shared_bus, shared_settings).http.application)


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[f"{method} {path}" for method, path in OPERATIONS])
def test_every_answer_is_as_the_document_says(described: Any, method: str, path: str) -> None:
    # This submit is open; test_tenants.py has what it does with keys.
    excluded = [check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ in (EXCLUDED, "ignored_auth")]

    @settings(max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=described[path][method].as_strategy())
    def answers_as_described(case: Any) -> None:
        # An event is answered with no body, which the document can say of / only.
        if case.media_type != STRUCTURED or path == "/":
            case.call_and_validate(excluded_checks=excluded)

    answers_as_described()
