"""The container files: what they copy is there, they run as whom the manifests say, and nothing more goes in."""

import fnmatch
import re
from pathlib import Path

import pytest

from tests.manifests import pods

ROOT = Path(__file__).parents[2]
FILES = ("Containerfile", "Containerfile.engine")


def lines(name: str) -> list[str]:
    """The instructions of a container file."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets this path into a build; the last rule that fits decides."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    verdict = True
    for rule in rules:
        if fnmatch.fnmatch(path, rule.lstrip("!")):
            verdict = rule[0] == "!"
    return verdict


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_in_the_project_and_let_through(name: str) -> None:
    copied = [
        word for line in lines(name) if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]

    assert {"pyproject.toml", "engine", "functions"} <= set(copied)
    assert [path for path in copied if not (ROOT / path).exists() or not is_sent(path)] == []


@pytest.mark.parametrize("path", [".git", "tests", ".env", "knative", "engine/contract/__pycache__", "secrets.yaml"])
def test_nothing_else_is_sent_to_a_build(path: str) -> None:
    assert not is_sent(path)


@pytest.mark.parametrize("name", FILES)
def test_an_image_runs_as_the_user_that_the_manifests_name(name: str) -> None:
    users = [line.removeprefix("USER ") for line in lines(name) if line.startswith("USER ")]
    container = pods("prod")["submit"]["spec"]["containers"][0]["securityContext"]

    assert users == [f"{container['runAsUser']}:{container['runAsGroup']}"]


@pytest.mark.parametrize("name", FILES)
def test_a_build_takes_nothing_from_the_network_but_packages(name: str) -> None:
    assert [line for line in lines(name) if re.search(r"ADD |curl|wget|apt-get|git clone|--trusted-host", line)] == []
    assert all("--constraint constraints.txt" in line for line in lines(name) if " install " in line)


def test_the_image_of_functions_has_no_torch() -> None:
    assert not any("engine]" in line or "torch" in line for line in lines("Containerfile"))


def test_the_overlay_dev_uses_the_models_that_the_engine_brings() -> None:
    built = re.search(r"engine\.models\.tiny (\S+)", " ".join(lines("Containerfile.engine")))

    assert built
    assert built[1] in (ROOT / "knative/overlays/dev/run-overlay.yaml").read_text()


def test_func_leaves_out_what_a_function_does_not_run() -> None:
    ignored = (ROOT / ".funcignore").read_text().splitlines()

    assert {".git", ".venv", "tests"} <= set(ignored)
    assert {"engine", "functions", "function.py", "pyproject.toml", "README.md", "LICENSE"}.isdisjoint(ignored)
