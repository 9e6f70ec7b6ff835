"""Endpoints from a file: what may stand in it, what is said about the rest, and that no secret is ever repeated."""

import base64
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.contract.endpoint import Endpoint, of_request, parse_endpoints
from engine.contract.errors import Invalid
from tests.make import TENANT

SECRET = "whsec_" + base64.b64encode(b"cinevent" * 4).decode()
PAGE = Path(__file__).parents[2] / "docs" / "webhooks.md"


def parsed(*rows: dict[str, Any]) -> dict[tuple[str, str], Endpoint]:
    return parse_endpoints({"endpoints": list(rows)}, tenant=TENANT, read=lambda _: f"{SECRET}\n")


def a_row(**over: Any) -> dict[str, Any]:
    return {"name": "shop", "url": "https://example.com/hook", "secrets": [SECRET], **over}


def problems(*rows: dict[str, Any]) -> dict[str, str]:
    """Pointer and message of every problem."""
    with pytest.raises(Invalid) as caught:
        parsed(*rows)
    return {problem.pointer: problem.message for problem in caught.value.problems}


def test_what_is_left_out_has_a_default() -> None:
    (endpoint,) = parsed(a_row()).values()

    assert endpoint == Endpoint(
        name="shop", tenant=TENANT, url="https://example.com/hook", keys=(b"cinevent" * 4,), concurrency=10
    )
    assert endpoint.events == ("completed", "failed", "cancelled")


def test_the_example_of_the_page_can_be_used() -> None:
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found

    endpoints = parse_endpoints(yaml.safe_load(found[1]), tenant=TENANT, read=lambda _: SECRET)

    shop, dashboard = endpoints.values()
    assert (len(shop.keys), len(dashboard.keys), dashboard.format, dashboard.handshake) == (1, 2, "binary", True)


def test_the_same_name_may_stand_once_per_tenant() -> None:
    assert len(parsed(a_row(), a_row(tenant="team-2"))) == 2
    assert "two endpoints" in problems(a_row(), a_row())["/endpoints/1/name"]


@pytest.mark.parametrize(
    ("over", "where"),
    [
        ({"name": "Shop"}, "/name"),
        ({"name": "url-abc"}, "/name"),
        ({"tenant": "dead"}, "/tenant"),
        ({"url": "ftp://example.com"}, "/url"),
        ({"url": "https://user:pass@example.com"}, "/url"),
        ({"events": ["started"]}, "/events/0"),
        ({"events": []}, "/events"),
        ({"format": "batch"}, "/format"),
        ({"secrets": []}, "/secrets"),
        ({"secrets": [SECRET] * 3}, "/secrets"),
        ({"secrets": ["whsec_short"]}, "/secrets/0"),
        ({"rate_per_minute": 0}, "/rate_per_minute"),
        ({"concurrency": 1000}, "/concurrency"),
        ({"headers": {"webhook-id": "x"}}, "/headers/webhook-id"),
        ({"headers": {"Host": "x"}}, "/headers/Host"),
        ({"headers": {"x": "a\r\nb: c"}}, "/headers/x"),
        ({"secret": SECRET}, ""),
    ],
)
def test_what_breaks_a_rule_is_named_by_its_place(over: dict[str, Any], where: str) -> None:
    assert [*problems(a_row(**over))] == [f"/endpoints/0{where}"]


@pytest.mark.parametrize("secrets", [["whsec_c2VjcmV0"], ["c2VjcmV0" * 9] * 3, "c2VjcmV0", [{"c2VjcmV0": 1}]])
def test_a_secret_is_never_repeated(secrets: Any) -> None:
    assert "c2VjcmV0" not in str(problems(a_row(secrets=secrets)))


def test_a_secret_s_file_that_cannot_be_read_is_named() -> None:
    def read(name: str) -> str:
        raise FileNotFoundError(2, "No such file or directory", name)

    with pytest.raises(Invalid, match="cannot read '/run/shop': No such file"):
        parse_endpoints({"endpoints": [a_row(secrets=["file:/run/shop"])]}, tenant=TENANT, read=read)


@pytest.mark.parametrize("data", [None, [], "endpoints", {"endpoints": None}, {"endpoints": [1]}])
def test_what_is_no_file_of_endpoints_is_refused(data: Any) -> None:
    with pytest.raises(Invalid):
        parse_endpoints(data, tenant=TENANT, read=lambda _: "")


def test_the_same_address_in_two_requests_is_one_endpoint_that_no_file_can_name() -> None:
    one, other = (of_request(url, tenant=TENANT, keys=()) for url in ("https://a.example/", "https://b.example/"))

    assert of_request("https://a.example/", tenant=TENANT, keys=()).name == one.name != other.name
    assert not one.is_standing
    assert SECRET not in repr(parsed(a_row()))
    assert "cinevent" not in repr(parsed(a_row())).replace("default", "")
