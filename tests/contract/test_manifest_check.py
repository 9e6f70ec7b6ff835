"""`python -m knative.check` finds what an API server would refuse, or would drop without a word."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from knative.check import func_problems, main, problems, read_schemas
from tests.manifests import of

KIND = ("example.com/v1", "Thing")
THING = {
    "apiVersion": "example.com/v1",
    "kind": "Thing",
    "metadata": {"name": "t", "labels": {"a": "b"}},
    "spec": {"size": 1, "port": "http", "free": {"any": 1}, "items": [{"name": "x"}]},
}
SPEC = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer"},
        "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "items": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
    },
}


@pytest.fixture
def crds(tmp_path: Path) -> Path:
    """A folder with the definition of one kind, and one in which func.yaml may have no field but its name."""
    version = {
        "name": "v1",
        "served": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": SPEC}}},
    }
    definition = {"spec": {"group": "example.com", "names": {"kind": "Thing"}, "versions": [version]}}
    (tmp_path / "thing.yaml").write_text(yaml.safe_dump(definition, indent=2))
    (tmp_path / "func_yaml-schema.json").write_text(
        '{"type": "object", "properties": {"name": {"type": "string"}}, "additionalProperties": false}'
    )
    return tmp_path


def changed(item: dict[str, Any], *path: str | int, value: Any) -> dict[str, Any]:
    """A copy with another value at a path."""
    copy: Any = deepcopy(item)
    at = copy
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    assert isinstance(copy, dict)
    return copy


def test_an_object_as_its_definition_says_has_no_problem(crds: Path) -> None:
    assert list(problems(THING, read_schemas(crds, {KIND}))) == []


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("spec", "sizes"), 1, "sizes"),
        (("spec", "items", 0, "title"), "x", "title"),
        (("spec", "size"), "1", "size"),
        (("spec",), {}, "size"),
        (("spek",), {}, "spek"),
        (("spec", "port"), [1], "port"),
        (("metadata", "label"), {}, "label"),
    ],
)
def test_what_its_definition_does_not_allow_is_a_problem(
    crds: Path, path: tuple[Any, ...], value: Any, word: str
) -> None:
    found = list(problems(changed(THING, *path, value=value), read_schemas(crds, {KIND})))

    assert len(found) == 1
    assert word in found[0]


def test_a_kind_without_a_definition_is_a_problem(crds: Path) -> None:
    assert list(problems({**THING, "kind": "Other"}, read_schemas(crds, {KIND}))) == [
        "Other t: CRD_DIR has no definition of Other in example.com/v1"
    ]


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("spec", "template", "spec", "containers", 0, "imagePullpolicy"), "Always", "imagePullpolicy"),
        (("spec", "template", "spec", "containers", 0, "name"), None, "name"),
        (("spec", "template", "spec", "containers", 0, "ports"), [{"containerPort": "many"}], "containerPort"),
        (("spec", "serviceNam"), "nats", "serviceNam"),
        (("spec", "service_name"), "nats", "service_name"),
    ],
)
def test_a_kind_of_kubernetes_is_held_to_its_fields(path: tuple[Any, ...], value: Any, word: str) -> None:
    nats = of("StatefulSet", "dev")["nats"]

    assert list(problems(nats, {})) == []
    assert word in str(list(problems(changed(nats, *path, value=value), {})))


def test_func_yaml_is_held_to_its_schema(crds: Path) -> None:
    assert any("runtime" in problem for problem in func_problems(crds))


def test_a_crd_dir_that_is_no_folder_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRD_DIR", "/no/such/folder")

    assert main() == 1
    assert "CRD_DIR=/no/such/folder" in capsys.readouterr().err


def test_without_a_crd_dir_it_says_what_it_did_not_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CRD_DIR", raising=False)

    assert main() == 0
    assert "NOT checked" in (said := capsys.readouterr().out)
    assert "serving.knative.dev/v1 Service" in said
