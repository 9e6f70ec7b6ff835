"""Checks every overlay and component, and func.yaml, against the schemas of their readers; unknown fields are errors.

`python -m knative.check` ends with 1 if something is wrong. Kinds of Kubernetes itself are checked against the models
of its client, those of other projects against their CustomResourceDefinitions in the folder that CRD_DIR names. Without
it these are rendered only, and that is said.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml
from kubernetes.client import models
from pydantic import ValidationError

from knative.render import COMPONENTS, OVERLAYS, load, render

_ROOT = Path(__file__).parents[1]
_BUILT_IN = frozenset(
    {"v1", "apps/v1", "batch/v1", "networking.k8s.io/v1", "policy/v1", "rbac.authorization.k8s.io/v1"}
)
# Kinds whose definition is not among those that CRD_DIR has, and why that is so.
_WITHOUT_SCHEMA = {"NatsJetStreamChannel": "its project, eventing-natss, is only needed by the component `broker`"}

Schemas = Mapping[tuple[str, str], Any]


def main() -> int:
    """Check all; returns the exit code."""
    folder = os.environ.get("CRD_DIR", "")
    if folder and not Path(folder).is_dir():
        print(f"CRD_DIR={folder} is no folder; allowed: one with CustomResourceDefinitions, or none", file=sys.stderr)
        return 1
    renders = {name: render(name) for name in OVERLAYS} | {f"dev + {name}": render("dev", name) for name in COMPONENTS}
    kinds = {(item["apiVersion"], item["kind"]) for objects in renders.values() for item in objects}
    schemas = read_schemas(Path(folder), kinds) if folder else {}
    found = [
        f"{name}: {problem}"
        for name, objects in renders.items()
        for item in objects
        for problem in problems(item, schemas, has_schemas=bool(folder))
    ]
    found += func_problems(Path(folder)) if folder else []
    print("\n".join([*found, _summary(renders, kinds, folder=folder)]))
    return 1 if found else 0


def _summary(renders: Mapping[str, list[Any]], kinds: set[tuple[str, str]], *, folder: str) -> str:
    num_objects = sum(len(objects) for objects in renders.values())
    others = sorted({f"{version} {kind}" for version, kind in kinds if version not in _BUILT_IN})
    unchecked = others if not folder else [f"{kind} ({why})" for kind, why in _WITHOUT_SCHEMA.items()]
    why = "" if folder else ", nor func.yaml: CRD_DIR is not set"
    return f"{num_objects} objects of {', '.join(renders)}. NOT checked: {', '.join(unchecked)}{why}"


def problems(item: Mapping[str, Any], schemas: Schemas, *, has_schemas: bool = True) -> Iterator[str]:
    """What is wrong with one object."""
    version, kind = item["apiVersion"], item["kind"]
    at = f"{kind} {item['metadata']['name']}"
    if version in _BUILT_IN:
        yield from _model_problems(item, f"V1{kind}", at)
        return
    yield from _model_problems(item["metadata"], "V1ObjectMeta", f"{at}.metadata")
    if not has_schemas or kind in _WITHOUT_SCHEMA:
        return
    if (version, kind) not in schemas:
        yield f"{at}: CRD_DIR has no definition of {kind} in {version}"
        return
    for error in jsonschema_rs.validator_for(schemas[version, kind]).iter_errors(item):
        yield f"{at}.{'.'.join(str(part) for part in error.instance_path)}: {error.message}"


def read_schemas(folder: Path, kinds: set[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """The strict schemas of these kinds (apiVersion, kind) that the definitions in a folder have."""
    wanted = [re.compile(rf"^\s*kind: {kind}\s*$", re.MULTILINE) for _, kind in kinds]
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))]
    definitions = [crd for text in texts if any(name.search(text) for name in wanted) for crd in load(text)]
    return {
        (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]): _of_object(
            version["schema"]["openAPIV3Schema"]
        )
        for crd in definitions
        for version in crd["spec"]["versions"]
        if version["served"]
    }


def _of_object(schema: Mapping[str, Any]) -> Any:
    """A definition may leave out what every object has; metadata is checked by itself."""
    implied = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    return strict({**schema, "properties": {**schema["properties"], **implied}})


def strict(schema: Any) -> Any:
    """A structural schema of Kubernetes as a JSON Schema in which a field that has no name in it is an error."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    properties = {name: strict(value) for name, value in schema.get("properties", {}).items()}
    made = {name: strict(value) for name, value in schema.items() if name not in ("properties", "default", "example")}
    if properties:
        made["properties"] = properties
        made.setdefault("additionalProperties", False)
    if made.pop("x-kubernetes-int-or-string", False):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    if made.pop("nullable", False) and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def func_problems(folder: Path) -> list[str]:
    """What is wrong with func.yaml, by func's own schema."""
    schema = json.loads((folder / "func_yaml-schema.json").read_text(encoding="utf-8"))
    # YAML reads a date where JSON, and so the schema, has a text.
    text = json.dumps(yaml.safe_load((_ROOT / "func.yaml").read_text(encoding="utf-8")), default=datetime.isoformat)
    found = json.loads(text)
    errors = jsonschema_rs.validator_for(schema).iter_errors(found)
    return [f"func.yaml {'.'.join(map(str, error.instance_path))}: {error.message}" for error in errors]


def _model_problems(value: Any, kind: str, at: str) -> Iterator[str]:
    """What a value has too much of or lacks, by a model of the client."""
    yield from _unknown_fields(value, kind, at)
    try:
        getattr(models, kind).model_validate(value)
    except ValidationError as error:
        for each in error.errors():
            if each["type"] != "extra_forbidden":
                yield f"{at}.{'.'.join(map(str, each['loc']))}: {each['msg']}"


def _unknown_fields(value: Any, kind: str, at: str) -> Iterator[str]:
    """The fields that a type of the client, such as `V1Pod` or `List[V1Pod]`, does not have, at any depth.

    The client's own check would take Python's names for Kubernetes'.
    """
    kind = re.sub(r"^(?:List\[|Dict\[str, )(.*)\]$", r"\1", kind)
    if isinstance(value, list):
        for place, item in enumerate(value):
            yield from _unknown_fields(item, kind, f"{at}[{place}]")
    elif isinstance(value, dict) and hasattr(models, kind):
        model = getattr(models, kind)
        attributes = {name: attribute for attribute, name in model.attribute_map.items()}
        for name, item in value.items():
            if name in attributes:
                yield from _unknown_fields(item, model.openapi_types[attributes[name]], f"{at}.{name}")
            else:
                yield f"{at}: unknown field {name}"


if __name__ == "__main__":
    sys.exit(main())
