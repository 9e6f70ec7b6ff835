"""What one check of `cinevent doctor` found. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from engine.contract.errors import CineventError


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WRONG = "wrong"
    NOT_CHECKED = "not checked"


class Wrong(CineventError):
    """What a look found that is not as it should be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the report."""

    part: str
    verdict: Verdict
    text: str
    fix: str = ""
    """A command, or what to change; set when the verdict is WRONG."""


def ok(part: str, text: str) -> Finding:
    """A part that is as it should be."""
    return Finding(part=part, verdict=Verdict.OK, text=text)


def wrong(part: str, text: str, *, fix: str) -> Finding:
    """A part that is not, and what mends it."""
    return Finding(part=part, verdict=Verdict.WRONG, text=text, fix=fix)


def not_checked(part: str, why: str) -> Finding:
    """A part that cannot be seen from here, or that is not in use."""
    return Finding(part=part, verdict=Verdict.NOT_CHECKED, text=why)


def attempt(part: str, look: Callable[[], str], *, fix: str) -> Finding:
    """OK with what `look` says, or WRONG with the error that it raises."""
    try:
        return ok(part, look())
    except CineventError as error:
        return wrong(part, str(error), fix=fix)
