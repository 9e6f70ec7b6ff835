"""CloudEvents as bytes: every form there and back, and nothing but BadEvent for what is no event."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.codec import STRUCTURED, decode, encode, encode_binary, encode_nats, is_event, loads
from engine.contract.errors import BadEvent
from engine.contract.events import Event
from tests.make import an_event
from tests.unit.values import any_json, as_body, events

Encoder = Callable[[Event], tuple[dict[str, str], bytes]]
REQUIRED = ("specversion", "id", "source", "type")


def structured(**over: Any) -> bytes:
    """A structured event with these attributes replaced."""
    attributes = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order", "data": {}}
    return as_body({**attributes, **over})


def binary(**over: str) -> dict[str, str]:
    """The headers of a binary event, with these attributes replaced."""
    attributes = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order", **over}
    return {"content-type": "application/json"} | {f"ce-{name}": value for name, value in attributes.items()}


def refusal(headers: Mapping[str, str], body: bytes) -> tuple[str, str]:
    """Pointer and rule of the problem that these bytes have."""
    with pytest.raises(BadEvent) as caught:
        decode(headers, body)
    return caught.value.problems[0].pointer, caught.value.problems[0].rule


@pytest.mark.parametrize("encoder", [encode, encode_nats, encode_binary])
@given(event=events)
def test_an_event_survives_the_wire(encoder: Encoder, event: Event) -> None:
    assert decode(*encoder(event)) == event


@given(events)
def test_nats_is_never_told_a_specversion(event: Event) -> None:
    """With that header the Go SDK and Knative take the structured body for binary data."""
    headers, _ = encode_nats(event)

    assert headers == {"content-type": STRUCTURED, "Nats-Msg-Id": f"{event.source}#{event.id}"}


@given(events)
def test_binary_headers_are_printable_ascii(event: Event) -> None:
    headers, _ = encode_binary(event)

    assert [value for value in headers.values() if not (value.isascii() and value.isprintable())] == []


def test_header_names_are_read_in_any_case() -> None:
    headers, body = encode_binary(an_event("started"))

    assert decode({name.title(): value for name, value in headers.items()}, body) == an_event("started")


def test_a_structured_event_without_headers_is_read() -> None:
    assert decode({}, encode(an_event("started"))[1]) == an_event("started")


def test_a_structured_content_type_may_have_a_charset() -> None:
    _, body = encode(an_event("started"))

    assert decode({"Content-Type": f"{STRUCTURED}; charset=UTF-8"}, body) == an_event("started")


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [None, ""])
def test_a_structured_event_without_a_required_attribute_is_refused(name: str, value: str | None) -> None:
    """The SDK would invent an id, and with it a second job."""
    assert refusal({"content-type": STRUCTURED}, structured(**{name: value})) == (f"/{name}", "required")


@pytest.mark.parametrize("name", ["id", "source", "type"])
def test_a_binary_event_without_a_required_attribute_is_refused(name: str) -> None:
    headers = binary()
    del headers[f"ce-{name}"]

    assert refusal(headers, b"{}") == (f"/{name}", "required")


def test_binary_headers_without_a_specversion_are_no_event() -> None:
    headers = binary()
    del headers["ce-specversion"]

    assert refusal(headers, b'{"prompt": "a boat"}') == ("/specversion", "required")


@pytest.mark.parametrize(
    ("value", "text"),
    [(5, "5"), (-7, "-7"), (2**31, "2147483648"), (True, "true"), (False, "false"), ("5", "5")],
)
def test_extension_values_become_canonical_strings(value: object, text: str) -> None:
    assert decode({}, structured(shot=value)).extensions == {"shot": text}


def test_a_null_extension_is_an_absent_one() -> None:
    assert decode({}, structured(shot=None)).extensions == {}


BAD_ATTRIBUTES: list[tuple[dict[str, Any], str, str]] = [
    ({"specversion": "0.3"}, "/specversion", "const"),
    ({"id": 5}, "/id", "type"),
    ({"type": ["order"]}, "/type", "type"),
    ({"source": "/shop\n"}, "/source", "control_characters"),
    ({"subject": ""}, "", "attribute"),
    ({"subject": True}, "/subject", "type"),
    ({"datacontenttype": "text/xml"}, "/datacontenttype", "media_type"),
    ({"data": [1]}, "/data", "data"),
    ({"data": None}, "/data", "data"),
    ({"data_base64": "e30="}, "/data_base64", "data"),
    ({"shot": 1.5}, "/shot", "type"),
    ({"shot": {"number": 1}}, "/shot", "type"),
    ({"shot": "a\x00"}, "/shot", "control_characters"),
    ({"Shot": "a"}, "/Shot", "name"),
    ({"shot-1": "a"}, "/shot-1", "name"),
    ({"": "a"}, "/", "name"),
    # A name with a line break would be a header of somebody else's choice in binary mode.
    ({"shot\n": "a"}, "/shot\n", "name"),
    ({"time": "2026-11-20T10:00:00"}, "/time", "timestamp"),
    ({"time": "2026"}, "/time", "timestamp"),
    ({"time": "2026-02-30T10:00:00Z"}, "/time", "timestamp"),
    ({"time": "0001-01-01T00:00:00+14:00"}, "/time", "timestamp"),
    ({"time": ""}, "/time", "timestamp"),
    ({"time": 1_800_000_000}, "/time", "type"),
]


@pytest.mark.parametrize(("over", "pointer", "rule"), BAD_ATTRIBUTES)
def test_an_attribute_of_another_form_is_refused(over: dict[str, Any], pointer: str, rule: str) -> None:
    assert refusal({}, structured(**over)) == (pointer, rule)


@pytest.mark.parametrize("text", ["2026-11-20T10:00:00Z", "2026-11-20t10:00:00.000z", "2026-11-20T08:30:00-01:30"])
def test_one_instant_has_one_form(text: str) -> None:
    event = decode({}, structured(time=text))

    assert event.time == datetime(2026, 11, 20, 10, tzinfo=UTC)
    assert event.time.tzinfo is UTC


def test_an_event_without_a_time_gets_the_present_one() -> None:
    before = datetime.now(UTC)

    assert before <= decode({}, structured()).time <= datetime.now(UTC)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"boat",
        b"\xff\xfe",
        b"[1e400]",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": "\\ud83d"}',
        b'{"a": "\xed\xa0\xbd"}',
        b"9" * 5000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_bytes_that_are_not_strict_json_are_refused(body: bytes) -> None:
    with pytest.raises(BadEvent, match="the body is not JSON") as caught:
        loads(body)

    assert caught.value.problems[0].rule == "json"
    assert len(str(caught.value)) < 300


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert loads(rb'"\ud83d\udea3"') == "\U0001f6a3"


@pytest.mark.parametrize("value", ["%ff", "%ed%a0%bd", "\u6c34", "%c3"])
def test_a_header_that_is_not_percent_encoded_utf_8_is_refused(value: str) -> None:
    assert refusal(binary(subject=value), b"{}") == ("/subject", "percent_encoding")


def test_a_stray_percent_sign_stands_for_itself() -> None:
    assert decode(binary(subject="100%"), b"{}").subject == "100%"


def test_a_batch_is_refused_as_a_batch() -> None:
    assert refusal({"content-type": "application/cloudevents-batch+json"}, b"[]") == ("", "batch")


@pytest.mark.parametrize(
    ("headers", "announced"),
    [
        ({"Content-Type": STRUCTURED}, True),
        ({"content-type": "application/cloudevents-batch+json"}, True),
        ({"CE-Id": "1"}, True),
        ({"Content-Type": "application/json"}, False),
        ({}, False),
    ],
)
def test_headers_announce_an_event_or_not(headers: dict[str, str], announced: bool) -> None:
    assert is_event(headers) is announced


def event_or_refusal(headers: Mapping[str, str], body: bytes) -> Event | BadEvent:
    try:
        return decode(headers, body)
    except BadEvent as error:
        return error


_names = st.sampled_from(
    ["Content-Type", "ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "ce-data", "ce-", "CE-X"]
)
_values = st.text(max_size=30) | st.sampled_from(["1.0", STRUCTURED, "application/json", "2026-11-20T10:00:00Z"])


@given(st.dictionaries(_names | st.text(max_size=5), _values, max_size=6), st.binary(max_size=40))
def test_any_bytes_are_an_event_or_refused(headers: dict[str, str], body: bytes) -> None:
    assert isinstance(event_or_refusal(headers, body), Event | BadEvent)


@given(
    st.dictionaries(st.sampled_from([*REQUIRED, "time", "subject", "data", "data_base64", "x"]) | st.text(), any_json)
)
def test_any_attributes_are_an_event_or_refused(over: dict[str, Any]) -> None:
    answer = event_or_refusal({}, structured(**over))

    # What was taken in can be sent on, in every form.
    if isinstance(answer, Event):
        assert decode(*encode_binary(answer)) == decode(*encode_nats(answer)) == answer


@given(st.dictionaries(_names, _values), any_json)
def test_any_headers_over_json_are_an_event_or_refused(headers: dict[str, str], data: Any) -> None:
    answer = event_or_refusal({**binary(), **headers}, json.dumps(data).encode())

    if isinstance(answer, Event):
        assert decode(*encode_binary(answer)) == decode(*encode_nats(answer)) == answer
