"""The objects of the overlays in knative/, for tests that read them."""

import re
from functools import cache
from typing import Any

from knative.render import COMPONENTS, OVERLAYS, render

RENDERS = [(name,) for name in OVERLAYS] + [("dev", name) for name in COMPONENTS]
"""Names for `objects`: every overlay, and every component on one."""
FUNCTIONS = ("submit", "dispatch", "notify")


@cache
def objects(*names: str) -> list[dict[str, Any]]:
    return render(*names)


def of(kind: str, *names: str, version: str = "") -> dict[str, Any]:
    """The objects of a kind, by name."""
    return {
        item["metadata"]["name"]: item
        for item in objects(*names)
        if item["kind"] == kind and version in ("", item["apiVersion"])
    }


def pods(*names: str) -> dict[str, dict[str, Any]]:
    """Metadata, namespace and spec of every pod that an overlay's objects lead to, by the name of the object."""
    specs = [(item["metadata"], item.get("spec", {})) for item in objects(*names)]
    held = [(metadata, spec.get("jobTemplate", {}).get("spec", spec)) for metadata, spec in specs]
    return {
        metadata["name"]: {**spec["template"], "namespace": metadata["namespace"]}
        for metadata, spec in held
        if "template" in spec
    }


def data(name: str, *names: str) -> dict[str, str]:
    """What is in the generated ConfigMap or Secret of this name."""
    found = [item for item in objects(*names) if re.fullmatch(rf"{name}-[a-z0-9]{{10}}", item["metadata"]["name"])]
    assert len(found) == 1
    values: dict[str, str] = found[0]["data"]
    return values
