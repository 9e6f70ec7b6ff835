"""func.yaml and function.py: what Knative's func makes of this project runs, for each of the three functions."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from engine.adapters.bus import Bus
from engine.contract.codec import encode_binary
from engine.contract.events import REQUEST_TYPE, Event
from engine.contract.settings import Settings
from function import FUNCTIONS
from tests.make import a_body, a_request, an_event
from tests.servers import Child, Sink, child, free_port, wait_until

ROOT = Path(__file__).parents[2]
SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
# What func's scaffolding writes around a Python function (knative/func, templates/python/scaffolding).
PROJECT = """
[project]
name = "service"
version = "0.1.0"
dependencies = ["func-python", "function @ file://{root}"]
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.hatch.metadata]
allow-direct-references = true
[tool.hatch.build.targets.wheel]
packages = ["service"]
"""
MAIN = """
import function
from func_python.http import serve
from function import new
print(function.__file__, flush=True)
serve(new)
"""


@pytest.fixture(scope="module")
def scaffold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scaffold with everything it depends on installed beside it."""
    folder = tmp_path_factory.mktemp("scaffold")
    (folder / "service").mkdir()
    (folder / "service" / "main.py").write_text(MAIN)
    (folder / "pyproject.toml").write_text(PROJECT.format(root=ROOT))
    uv = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-build-isolation")
    where = ("--python", sys.executable, "--target", folder / "site", "--constraint", ROOT / "constraints.txt")
    subprocess.run([*uv, *where, str(folder)], check=True, timeout=100)
    return folder


@pytest.fixture(params=FUNCTIONS)
def service(
    request: pytest.FixtureRequest, scaffold: Path, settings: Settings, tmp_path: Path
) -> Iterator[tuple[str, str, Child]]:
    """(function, address, process) of the scaffold serving one function, ready."""
    port = free_port()
    env = {
        **settings.environ(),
        "CINEVENT_FUNCTION": request.param,
        "CINEVENT_ENGINE_COMMAND": "true",
        "CINEVENT_WEBHOOK_SECRET": SECRET,
        "LISTEN_ADDRESS": f"127.0.0.1:{port}",
        "PYTHONPATH": str(scaffold / "site"),
    }
    url = f"http://127.0.0.1:{port}"
    with child([sys.executable, str(scaffold / "service" / "main.py")], env=env, log=tmp_path / "log") as process:
        wait_until(lambda: status(f"{url}/health/readiness") == 200, timeout_s=20, what=f"{request.param} is ready")
        yield request.param, url, process


def status(url: str, event: Event | None = None) -> int:
    """The status of a GET, or of the POST of an event; 0 while nobody answers."""
    headers, body = encode_binary(event) if event else ({}, None)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def test_func_serves_each_function_with_health_and_a_cloudevent(
    service: tuple[str, str, Child], scaffold: Path, bus: Bus, sink: Sink
) -> None:
    name, url, process = service
    accepted = a_request(webhook={"url": sink.url}).to_json()
    bus.publish(an_event("requested", time=datetime.now(UTC), request=accepted))
    sent = {
        "submit": Event(id="1", source="/t", type=REQUEST_TYPE, time=datetime.now(UTC), data=a_body()),
        "dispatch": an_event("requested"),
        "notify": an_event("completed"),
    }[name]

    assert status(f"{url}/health/liveness") == 200
    assert status(f"{url}/", sent) == {"submit": 202, "dispatch": 204, "notify": 204}[name]

    queued = bus.last("CINEVENT_WEBHOOKS", ["cinevent.webhooks.due.*.*.*"])
    assert len(queued) == (name == "notify")
    assert str(scaffold / "site") in process.log.read_text().splitlines()[0]
    assert process.stop() == 0


def test_another_name_is_refused_with_the_names_that_are_allowed() -> None:
    import function

    with pytest.raises(Exception, match="allowed: submit, dispatch, notify"):
        function.new().start({"CINEVENT_FUNCTION": "train"})


def test_func_yaml_is_a_python_function_of_this_project() -> None:
    found = yaml.safe_load((ROOT / "func.yaml").read_text())

    assert (found["specVersion"], found["runtime"], found["invoke"]) == ("0.36.0", "python", "http")
    assert {env["name"] for env in found["run"]["envs"]} >= {"CINEVENT_FUNCTION", "CINEVENT_NATS_URL"}
