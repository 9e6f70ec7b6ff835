"""Rules that any input may have to keep, as Problems: a JSON Schema, plain text, a web address. Pure."""

import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs

from engine.contract.errors import Problem
from engine.contract.models import Limits

# RFC 3339, which the CloudEvents type Timestamp names; fromisoformat alone would also take "2026" or "20261120T10".
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
TIMESTAMP_RULE = "allowed: RFC 3339, such as 2026-11-20T10:00:00Z"


def read_timestamp(text: str) -> datetime:
    """The instant that an RFC 3339 timestamp names, in UTC. Raises ValueError."""
    if not _TIMESTAMP.fullmatch(text):
        raise ValueError(text)
    try:
        # Upper case: fromisoformat takes Z, not z. UTC: one form for one instant.
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except OverflowError as error:
        # An offset that leads beyond year 1 or 9999.
        raise ValueError(text) from error


def schema_problems(validator: jsonschema_rs.Draft202012Validator, data: Any) -> Iterator[Problem]:
    """The schema errors of `data` as Problems; long values are cut from the messages."""
    try:
        errors = list(validator.iter_errors(data))
    except ValueError as limit:
        # The validator's own limits: nesting beyond 255 levels, a name that has no UTF-8 form.
        yield Problem(pointer="", rule="json", message=f"this cannot be checked as JSON: {limit}")
        return
    for error in errors:
        message = error.message if len(error.message) <= 300 else f"{error.message[:120]} ... {error.message[-120:]}"
        yield Problem(pointer=pointer_to(*error.instance_path), rule=str(error.kind.name), message=message)


def integer_rule(limits: Limits, *, multiple_of: int | None = None) -> dict[str, Any]:
    """The schema of a whole number within `limits`."""
    rule = {"type": "integer", "minimum": limits.low, "maximum": limits.high, "default": limits.default}
    return rule if multiple_of is None else {**rule, "multipleOf": multiple_of}


def number_rule(low: float, high: float, default: float) -> dict[str, Any]:
    """The schema of a number from `low` to `high`."""
    return {"type": "number", "minimum": low, "maximum": high, "default": default}


def pointer_to(*parts: str | int) -> str:
    """The RFC 6901 pointer along these names and indices."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in parts)


def text_problems(text: str, pointer: str, *, may_be_empty: bool) -> Iterator[Problem]:
    """What keeps `text` from being shown, logged or tokenized."""
    if not text.strip() and not may_be_empty:
        yield Problem(pointer=pointer, rule="blank", message="the text is blank; write what the video shows")
    # Cc: control characters, Cs: lone surrogates (no UTF-8 form).
    bad = {c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"}
    if bad:
        named = ", ".join(sorted(f"U+{ord(c):04X}" for c in bad)[:5])
        message = f"control characters are not allowed except newline and tab; remove {named}"
        yield Problem(pointer=pointer, rule="control_characters", message=message)


def url_problems(url: str, pointer: str) -> Iterator[Problem]:
    """What keeps `url` from being an address that a request may name."""
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as error:
        yield Problem(pointer=pointer, rule="uri", message=f"not an address: {error}")
        return
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        message = "allowed: http:// or https:// with a host, such as https://example.com/hook"
        yield Problem(pointer=pointer, rule="uri", message=message)
    if parts.username is not None or parts.password is not None:
        yield Problem(pointer=pointer, rule="userinfo", message="an address has no user name and no password here")
    if not url.isascii() or not url.isprintable() or " " in url:
        yield Problem(pointer=pointer, rule="uri", message="an address is printable ASCII without spaces")
