"""dispatch in a cluster: how fast requests become runs, what a thousand active jobs cost, and what idleness does.

submit's part is left out: requests are put into the log. source, dispatch under gunicorn and nats-server are real, the
API server is tests/kube_api.py in a process of its own. Figures: p50 of requested -> the creation is answered, one
request at a time; launches per second of a burst; API calls per second and memory of dispatch while each of the active
jobs is looked at every 30 s; API calls while there is nothing to do.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.adapters.bus import Bus
from engine.contract.job import derived_id
from engine.contract.settings import Settings
from functions.dispatch.launchers.kube import Kube
from functions.dispatch.launchers.pytorchjob import PYTORCHJOB
from tests.kube.operator import Operator
from tests.make import TENANT, a_request, an_event
from tests.servers import NatsServer, accepts, child, free_port, wait_until

GOALS = {"p50_ms": 30, "launches_per_s": 200, "calls_per_s": 5, "memory_mib": 150, "idle": 0}
SOURCES = ("requests", "alarms")
# As the source's slots are divided, so that all of them are used.
PRIORITIES = ("high",) * 6 + ("normal",) * 3 + ("low",)


@dataclass
class System:
    """Everything that takes part."""

    bus: Bus
    api: str
    kubeconfig: Path
    dispatch: int
    """Process id of gunicorn."""

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.api}/stats", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def ask(self, number: int) -> str:
        """Put a request into the log; returns its job."""
        job = derived_id(TENANT, "bench", str(number))
        priority = PRIORITIES[number % len(PRIORITIES)]
        request = a_request(deadline_s=86_400, priority=priority).to_json()
        self.bus.publish(an_event("requested", time=datetime.now(UTC), job=job, request=request))
        return job

    def memory_mib(self) -> float:
        """Memory of dispatch: gunicorn and its worker, what they share counted once."""
        children = Path(f"/proc/{self.dispatch}/task/{self.dispatch}/children").read_text().split()
        return sum(_proportional_mib(int(pid)) for pid in (self.dispatch, *children))


def _proportional_mib(pid: int) -> float:
    [line] = [line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:")]
    return int(line.split()[1]) / 1024


@contextmanager
def a_system(folder: Path, *, check_interval_s: float) -> Iterator[System]:
    with ExitStack() as stack:
        nats = NatsServer(folder)
        nats.start()
        stack.callback(nats.kill)
        address, port = folder / "api", free_port()
        stack.enter_context(child([sys.executable, "-m", "tests.kube_api", str(address)], env={}, log=folder / "log"))
        wait_until(address.exists)
        wait_until(address.read_text)
        config = folder / "kubeconfig"
        config.write_text(kubeconfig(address.read_text()))
        settings = replace(
            Settings(),
            nats_url=nats.url,
            store_url=f"file:{folder / 'store'}",
            launcher="pytorchjob",
            engine_image="engine:1",
            num_nodes=2,
            num_processes=8,
            max_runs=1_000_000,
            check_interval_s=check_interval_s,
        )
        env = {**settings.environ(), "KUBECONFIG": str(config), "K_SINK": f"http://127.0.0.1:{port}/"}
        gunicorn = [sys.executable, "-m", "gunicorn", "-c", "python:functions.gunicorn_conf"]
        command = [*gunicorn, "--bind", f"127.0.0.1:{port}", "functions.dispatch.app:create_app()"]
        dispatch = stack.enter_context(child(command, env=env, log=folder / "dispatch.log"))
        wait_until(lambda: accepts(port), what="dispatch listens")
        for name in SOURCES:
            source = [sys.executable, "-m", "functions.source", name]
            stack.enter_context(child(source, env=env, log=folder / f"{name}.log"))
        bus = Bus.open(settings)
        stack.callback(bus.close)
        # It answers once it is connected and the streams are there.
        bus.bounds("CINEVENT_JOBS")
        yield System(bus=bus, api=address.read_text(), kubeconfig=config, dispatch=dispatch.process.pid)


def kubeconfig(server: str) -> str:
    """The way to an API server."""
    cluster = {"name": "bench", "cluster": {"server": server}}
    context = {"name": "bench", "context": {"cluster": "bench", "user": "bench"}}
    users = [{"name": "bench", "user": {}}]
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context], "users": users}
    return json.dumps({**config, "current-context": "bench"})


def latency_ms(system: System, requests: int) -> float:
    """The median from the log's acknowledgement to the moment at which the server has answered the creation."""
    times = []
    for number in range(requests):
        begun = time.time()
        job = system.ask(number)
        run = f"{job}-a1"
        wait_until(lambda run=run: run in system.stats()["created"], what="the run is made")
        times.append((system.stats()["created"][run] - begun) * 1000)
    return sorted(times[5:])[len(times[5:]) // 2]


def launches_per_s(system: System, first: int, requests: int) -> float:
    """Of a burst that is in the log before the first of them starts: between the first creation and the last."""
    jobs = [system.ask(first + number) for number in range(requests)]
    runs = {f"{job}-a1" for job in jobs}
    # Seldom: each question takes time from those who are measured.
    while not runs <= system.stats()["created"].keys():
        time.sleep(0.5)
    at = sorted(made for run, made in system.stats()["created"].items() if run in runs)
    return (len(at) - 1) / (at[-1] - at[0])


def run_all(system: System) -> None:
    """Give every run its pods and have them run: what a look has to read."""
    kube = Kube.open(kubeconfig=str(system.kubeconfig))
    operator = Operator(kube, PYTORCHJOB)
    for run in system.stats()["created"]:
        operator.start(run)
    kube.close()


def calls_per_s(system: System, *, seconds: float) -> float:
    before = system.stats()["calls"]
    time.sleep(seconds)
    return (system.stats()["calls"] - before) / seconds


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, a_system(Path(temporary), check_interval_s=30.0) as system:
        idle = system.stats()["calls"]
        time.sleep(min(options.seconds, 10.0))
        idle = system.stats()["calls"] - idle
        p50 = latency_ms(system, 45)
        rate = launches_per_s(system, 100, options.jobs - 45)
        run_all(system)
        busy = calls_per_s(system, seconds=options.seconds)
        memory = system.memory_mib()
    found = {"p50_ms": p50, "launches_per_s": rate, "calls_per_s": busy, "memory_mib": memory, "idle": idle}
    for name, value in found.items():
        print(f"{name} {value:.1f} (goal {GOALS[name]})")
    is_ok = rate >= GOALS["launches_per_s"] and all(
        found[name] <= goal for name, goal in GOALS.items() if name != "launches_per_s"
    )
    shown = "/".join(f"{found[name]:.0f}" for name in GOALS)
    goals = "<=30/>=200/<=5/<=150/0"
    print(f"dispatch_kube {shown} ms/launches/calls/MiB/idle {goals} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    assert os.environ.get("PYTHONPATH"), "run it by `make bench ONLY=dispatch`"
    sys.exit(main())
