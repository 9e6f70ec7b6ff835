"""Offers: what some models take and others do not, refused with the names of those that do. Pure."""

from collections.abc import Mapping
from typing import Any

from engine.contract.errors import Invalid, Problem
from engine.contract.models import CATALOG, ModelRow

_WHY_NOT = {
    "image": "starts from the prompt alone; leave image out",
    "cache": "has no calibration for magcache; ask for none or taylorseer",
    "preset": "has no presets; leave preset out",
}


def refuse_unavailable(data: Mapping[str, Any], row: ModelRow) -> None:
    """Raise Invalid for what `row` does not offer: a mere "unexpected field" would leave the sender guessing."""
    given = data.get("input")
    if not isinstance(given, dict):
        return
    wanted = {
        "image": "image" in given,
        "cache": given.get("cache") == "magcache",
        "preset": "preset" in given,
    }
    if problems := [_problem(row, name) for name in wanted if wanted[name] and not _offers(row, name)]:
        raise Invalid(*problems)


def _offers(row: ModelRow, name: str) -> bool:
    return {"image": row.image != "none", "cache": row.magnitudes is not None, "preset": bool(row.presets)}[name]


def _problem(row: ModelRow, name: str) -> Problem:
    takers = ", ".join(other.name for other in CATALOG.values() if _offers(other, name))
    message = f"{row.name} {_WHY_NOT[name]}, or ask for one of {takers}"
    return Problem(pointer=f"/input/{name}", rule="unavailable", message=message)
