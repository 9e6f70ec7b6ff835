"""dispatch as a process, killed at every point of a launch: never two runs of one attempt, never none."""

import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.adapters.bus import Bus
from engine.adapters.history import History
from engine.contract.codec import encode_binary
from engine.contract.events import Event
from engine.contract.job import derived_id, run_name
from engine.contract.settings import Settings
from tests.kube_api import Call, KubeApi
from tests.make import TENANT, a_request, an_event
from tests.servers import accepts, free_port, wait_until

RUNS = {"pytorchjob": "pytorchjobs", "indexedjob": "jobs"}


@dataclass(frozen=True)
class Point:
    """A call of a launch, and whether the server has done it when dispatch dies."""

    method: str
    plural: str
    is_done: bool


POINTS = {
    name: [
        *(Point(method, plural, is_done) for method in ("GET", "POST") for is_done in (False, True)),
        *(Point("POST", "services", is_done) for is_done in (False, True) if name == "indexedjob"),
    ]
    for name, plural in RUNS.items()
}


class Forker:
    """Starts dispatch processes, one after the other."""

    def __init__(self, environ: dict[str, str]) -> None:
        command = [sys.executable, "-m", "tests.kube.forker"]
        self._process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._pids: list[int] = []

    def start(self) -> tuple[int, str]:
        """A new one, ready: its process id and its address."""
        port = free_port()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{port}\n")
        self._process.stdin.flush()
        self._pids.append(int(self._process.stdout.readline()))
        wait_until(lambda: accepts(port), what="dispatch listens")
        return self._pids[-1], f"http://127.0.0.1:{port}/"

    def close(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        self._process.communicate(timeout=10)


@pytest.fixture(params=RUNS)
def launcher(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def forker(settings: Settings, kubeconfig: Path, launcher: str) -> Iterator[Forker]:
    cluster = {
        "KUBECONFIG": str(kubeconfig),
        "CINEVENT_LAUNCHER": launcher,
        "CINEVENT_ENGINE_IMAGE": "engine:1",
        "CINEVENT_NUM_NODES": "2",
        "CINEVENT_MAX_RUNS": "100",
    }
    made = Forker({**os.environ, **settings.environ(), **cluster})
    yield made
    made.close()


def post(url: str, event: Event) -> int:
    """The answer's status; 0 without an answer."""
    headers, body = encode_binary(event)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except (urllib.error.URLError, ConnectionError):
        return 0


class Killed(Exception):
    """The server got the call and does nothing any more with it."""


def kill_at(api: KubeApi, pid: int, point: Point) -> threading.Event:
    """Kill this process at the first call that is meant: before it is done, or before it is answered."""
    killed = threading.Event()

    def kill(call: Call) -> None:
        if call.method == point.method and call.path.endswith(f"/{point.plural}") and not killed.is_set():
            killed.set()
            os.kill(pid, signal.SIGKILL)
            if not point.is_done:
                raise Killed

    api.before, api.after = ((lambda _: None), kill) if point.is_done else (kill, (lambda _: None))
    return killed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_launch_that_is_killed_anywhere_leads_to_one_run(
    forker: Forker, launcher: str, api: KubeApi, bus: Bus, history: History
) -> None:
    jobs = [derived_id(TENANT, "test", str(number)) for number in range(len(POINTS[launcher]))]
    for job, point in zip(jobs, POINTS[launcher], strict=True):
        event = an_event("requested", time=datetime.now(UTC), job=job, request=a_request().to_json())
        bus.publish(event)
        if point.method == "GET":
            # One that went on with the last job has its lists already.
            pid, url = forker.start()
        killed = kill_at(api, pid, point)
        assert (post(url, event), killed.is_set()) == (0, True), point
        api.before = api.after = lambda _: None

        pid, url = forker.start()
        assert post(url, event) == 204, point

    names = [item["metadata"]["name"] for item in api.of(RUNS[launcher])]
    assert sorted(names) == sorted(run_name(job, 1) for job in jobs)
    assert len(api.of("services")) == (len(jobs) if launcher == "indexedjob" else 0)
    assert {history.get(TENANT, job).attempt for job in jobs} == {1}
    assert [call for call in api.calls if call.method == "DELETE"] == []
