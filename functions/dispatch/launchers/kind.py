"""A kind of run in a cluster: which objects it is made of. Pure; pytorchjob.py and indexedjob.py have one each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from functions.dispatch.launchers.pod import Order

TTL_S = 24 * 3600
"""A run that is over stays this long, as evidence; the result is in the store and in the log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One row; paths have `{namespace}` in them."""

    name: str
    collection: str
    """Where its objects are."""
    manifest: Callable[[Order], dict[str, Any]]
    companion: Callable[[Order, Mapping[str, Any]], dict[str, Any] | None] = lambda _order, _run: None
    """A Service that the run cannot do without, made after it and owned by it: the run goes, and it with it."""
