"""Hints: what Knative's ApiServerSource says of objects in the cluster. Pure.

It loses events, so nothing rests on them: a hint only says which job to look at before its alarm rings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from engine.contract.events import Event
from engine.contract.job import is_id, is_tenant

TYPES = frozenset(
    f"dev.knative.apiserver.{mode}.{change}"
    for mode, change in product(("resource", "ref"), ("add", "update", "delete"))
)
"""The types of both modes: with the whole object, and with a reference to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hint:
    """What an event is about."""

    job: str
    run: str
    tenant: str
    """Empty in an event that has no labels."""


def read(event: Event) -> Hint | None:
    """The hint in an event of one of TYPES; None if it is about nothing of ours."""
    metadata = event.data.get("metadata", event.data)
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str):
        return None
    # A pod is named after its run: <job>-a<attempt>-master-0, <job>-a<attempt>-0-x7k2p.
    job, *rest = name.split("-")
    if not (is_id(job) and rest and rest[0][:1] == "a" and rest[0][1:].isdecimal()):
        return None
    return Hint(job=job, run=f"{job}-{rest[0]}", tenant=_tenant(metadata))


def _tenant(metadata: Mapping[str, Any]) -> str:
    labels = metadata.get("labels")
    tenant = labels.get("cinevent.io/tenant") if isinstance(labels, Mapping) else None
    return tenant if isinstance(tenant, str) and is_tenant(tenant) else ""
