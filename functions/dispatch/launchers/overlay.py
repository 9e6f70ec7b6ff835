"""An operator's overlay: a strategic merge patch, as Kubernetes defines it, on the pod template of every run. Pure.

Maps are merged, null deletes, a list with a merge key is merged by it, any other list is replaced; `$patch: delete` and
`$patch: replace` work in maps and in elements of merged lists. The API server cannot do it: it has no merge keys for a
PyTorchJob.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.contract.errors import Invalid, Problem

# patchMergeKey of every list below a pod template (Kubernetes API, core/v1).
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
_DIRECTIVES = ("delete", "replace", "merge")


def check(patch: Any) -> dict[str, Any]:
    """The same patch, if `merge` can apply it to a pod template. Raises Invalid naming each place that is wrong."""
    if not isinstance(patch, dict) or not set(patch) <= {"metadata", "spec"}:
        given = sorted(patch) if isinstance(patch, dict) else type(patch).__name__
        message = f"it holds {given}; allowed: a map with `metadata` and `spec`, as of a pod template"
        raise Invalid(Problem(pointer="/", rule="template", message=message))
    problems = _problems(patch, "", "")
    if problems:
        raise Invalid(*problems)
    return patch


def merge(base: Any, patch: Any, field: str = "") -> Any:
    """`base` with `patch` applied; neither is changed. `field` is the name that both stand under."""
    if isinstance(patch, Mapping):
        return _merge_map(base if isinstance(base, Mapping) else {}, patch)
    if isinstance(patch, list) and field in _MERGE_KEYS:
        return _merge_list(base or [], patch, _MERGE_KEYS[field])
    return patch


def _merge_map(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    merged = {} if patch.get("$patch") == "replace" else dict(base)
    for name, value in patch.items():
        if value is None or (isinstance(value, Mapping) and value.get("$patch") == "delete"):
            merged.pop(name, None)
        elif name != "$patch":
            merged[name] = merge(merged.get(name), value, name)
    return merged


def _merge_list(base: Sequence[Mapping[str, Any]], patch: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    merged = {item[key]: item for item in base}
    for item in patch:
        if item.get("$patch") == "delete":
            merged.pop(item[key], None)
        else:
            merged[item[key]] = _merge_map(merged.get(item[key], {}), item)
    return list(merged.values())


def _problems(patch: Any, pointer: str, field: str) -> list[Problem]:
    if isinstance(patch, dict):
        return [
            *_directive_problems(patch, pointer),
            *(found for name, value in patch.items() for found in _problems(value, f"{pointer}/{name}", str(name))),
        ]
    if isinstance(patch, list) and field in _MERGE_KEYS:
        key = _MERGE_KEYS[field]
        return [found for place, item in enumerate(patch) for found in _item_problems(item, key, f"{pointer}/{place}")]
    return []


def _item_problems(item: Any, key: str, pointer: str) -> list[Problem]:
    if not isinstance(item, dict) or key not in item:
        message = f"an element of this list needs `{key}`: it says which element of the template it is for"
        return [Problem(pointer=pointer, rule="merge_key", message=message)]
    return _problems(item, pointer, "")


def _directive_problems(patch: Mapping[Any, Any], pointer: str) -> list[Problem]:
    known = patch.get("$patch", "merge") in _DIRECTIVES
    wrong = [name for name in patch if str(name).startswith("$") and not (name == "$patch" and known)]
    allowed = "allowed: $patch with delete, replace or merge"
    return [
        Problem(pointer=f"{pointer}/{name}", rule="directive", message=f"it is {patch[name]!r}; {allowed}")
        for name in wrong
    ]
