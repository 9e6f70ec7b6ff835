"""docs/operations.md, where it can be held to something: paths, commands, variables, and objects that there are."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from engine.contract.settings import Settings, env_name
from functions.cli import make_parser
from tests.manifests import objects

ROOT = Path(__file__).parents[2]
PAGES = ("docs/operations.md", "knative/README.md", "README.md")
TEXT = {page: (ROOT / page).read_text() for page in PAGES}
PLACEHOLDERS = {"JOB": "j" + "a" * 25, "N": "1", "MODEL": "wan2.2-t2v-a14b", "WxH": "832x480"}


def commands(page: str) -> list[str]:
    """Every `cinevent ...` in a code block or in backticks."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT[page], re.DOTALL))
    lines = re.findall(r"^\s*(cinevent [^#\n]*)", blocks, re.MULTILINE)
    prose = re.sub(r"```.*?```", "", TEXT[page], flags=re.DOTALL)
    return [line.strip() for line in lines + re.findall(r"`(cinevent [^`]+)`", prose)]


@pytest.mark.parametrize("page", PAGES)
def test_every_path_is_there(page: str) -> None:
    named = set(re.findall(r"(?<![\w./])(?:knative|functions|docs|engine)/[\w./-]*\w", TEXT[page]))

    assert [path for path in named if "YOURS" not in path and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one(page: str) -> None:
    for command in commands(page):
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)[1:]]
        if "--help" not in words:
            make_parser().parse_args(words)


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_is_a_setting(page: str) -> None:
    known = {env_name(item.name) for item in fields(Settings)} | {"CINEVENT_FUNCTION"}

    assert set(re.findall(r"\bCINEVENT_[A-Z_]+\b(?!\.)", TEXT[page])) - {"CINEVENT_DEAD", "CINEVENT_PROGRESS"} <= known


def test_every_object_that_a_command_names_is_made() -> None:
    made = {f"{item['kind'].lower()}/{item['metadata']['name']}" for item in objects("dev")}
    pattern = r"\b(statefulset|cronjob)/([\w-]+)|describe (scaledobject) ([\w-]+)|svc/(nats|s3)\b"
    named = re.findall(pattern, TEXT["docs/operations.md"])

    found = [tuple(part for part in each if part) for each in named]
    assert len(found) > 5
    assert [each for each in found if "/".join(each if len(each) == 2 else ("service", *each)) not in made] == []


def test_the_secrets_that_an_operator_makes_are_those_that_pods_name() -> None:
    made = set(re.findall(r"create secret generic ([\w-]+)", TEXT["docs/operations.md"]))
    named = set(re.findall(r"'(cinevent-(?:nats|s3|webhooks))'", str(objects("prod"))))

    assert made == named | {"nats-users", "cinevent-engine"}


def test_every_component_is_told_of() -> None:
    table = TEXT["docs/operations.md"].partition("## Components")[2].partition("## Upgrade")[0]

    assert set(re.findall(r"^\| (\w+) \|", table, re.MULTILINE)) - {"component"} == {
        path.name for path in (ROOT / "knative/components").iterdir()
    }
