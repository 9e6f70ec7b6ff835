"""A stand-in for the rest of a cluster: an operator that makes the pods of PyTorchJobs, and a kubelet that runs each of
them as processes of this machine: the pod's own command, with its environment and nothing else.

The operator's environment and its rules are training-operator 1.9.4's: PET_*, and `Running` when the master runs,
`Succeeded` when it ends well, `Failed` when any pod fails; then cleanPodPolicy. A name in DNS is this machine.
"""

import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from functions.dispatch.launchers.classify import is_over
from functions.dispatch.launchers.kube import Json, Kube
from functions.dispatch.launchers.pod import CONTAINER
from functions.dispatch.launchers.pytorchjob import PYTORCHJOB
from tests.kube.operator import Operator, now
from tests.servers import free_port

_TAIL_BYTES = 2048


@dataclass
class _Process:
    """A pod's container."""

    popen: subprocess.Popen[bytes]
    log: Path
    is_told_to_end: bool = False


@dataclass
class Cluster:
    """Runs what is in the API server, a look at a time."""

    kube: Kube
    folder: Path
    secrets: Mapping[str, Mapping[str, str]]
    """Variables by the name of their Secret."""
    processes: dict[str, _Process] = field(default_factory=dict)
    """By pod."""
    _ports: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._operator = Operator(self.kube, PYTORCHJOB)

    def pass_over(self) -> None:
        """One look at everything."""
        for run in self.kube.list_all(self._operator.runs, labels={}, keep=dict):
            if not is_over(run):
                self._control(run)
        for pod in self.kube.list_all(self._operator.pods, labels={}, keep=dict):
            self._keep(pod)

    def _control(self, run: Json) -> None:
        name = run["metadata"]["name"]
        pods = [
            pod
            for pod in self.kube.list_all(self._operator.pods, labels={}, keep=dict)
            if _owner(pod) == run["metadata"]["uid"]
        ]
        if not pods:
            self._operator.say(name, "Created")
            self._operator.make_pods(name)
            return
        phases = {pod["metadata"]["name"]: pod.get("status", {}).get("phase", "Pending") for pod in pods}
        master = phases.get(f"{name}-master-0")
        if "Failed" in phases.values():
            self._finish(name, "Failed", phases)
        elif master == "Succeeded":
            self._finish(name, "Succeeded", phases)
        elif master == "Running":
            self._operator.say(name, "Running")

    def _finish(self, run: str, kind: str, phases: Mapping[str, str]) -> None:
        self._operator.say(run, kind)
        # cleanPodPolicy: Running.
        for name in [name for name, phase in phases.items() if phase in ("Pending", "Running")]:
            item = self.kube.get(f"{self._operator.pods}/{name}")
            self.kube.delete(f"{self._operator.pods}/{name}", uid=item["metadata"]["uid"])

    def _keep(self, pod: Json) -> None:
        name, process = pod["metadata"]["name"], self.processes.get(pod["metadata"]["name"])
        if pod["metadata"].get("deletionTimestamp"):
            self._end(name, process)
        elif process is None:
            self.processes[name] = self._start(pod)
            self._operator.pod_runs(name)
        elif (code := process.popen.poll()) is not None and pod["status"]["phase"] == "Running":
            if code == 0:
                self._operator.pod_is(name, "Succeeded", {"terminated": {"exitCode": 0, "finishedAt": now()}})
            else:
                # terminationMessagePolicy: FallbackToLogsOnError.
                tail = process.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
                self._operator.pod_failed(name, code if code > 0 else 128 - code, message=tail)

    def _end(self, name: str, process: _Process | None) -> None:
        if process and process.popen.poll() is None:
            if not process.is_told_to_end:
                process.is_told_to_end = True
                _signal(process.popen, signal.SIGTERM)
            return
        self.kube._call("DELETE", f"{self._operator.pods}/{name}", body={"gracePeriodSeconds": 0})

    def _start(self, pod: Json) -> _Process:
        name = pod["metadata"]["name"]
        [container] = [item for item in pod["spec"]["containers"] if item["name"] == CONTAINER]
        folder = self.folder / name
        folder.mkdir(parents=True)
        [program, *arguments] = [*container["command"], *container.get("args", ())]
        log = folder / "log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [Path(sysconfig.get_path("scripts")) / program, *arguments],
                cwd=folder,
                env={"PATH": os.defpath, "TMPDIR": str(folder), "HOME": str(folder), **self._environ(pod, container)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return _Process(popen=popen, log=log)

    def _environ(self, pod: Json, container: Json) -> dict[str, str]:
        environ: dict[str, str] = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for source in container.get("envFrom", ()):
            environ |= self.secrets.get(source["secretRef"]["name"], {})
        environ |= {entry["name"]: entry["value"] for entry in container["env"]}
        run = pod["metadata"]["ownerReferences"][0]["name"]
        return {**environ, **self._torchrun(pod, run)}

    def _torchrun(self, pod: Json, run: str) -> dict[str, str]:
        """What the operator adds; the master's name and port are this machine's."""
        item = self.kube.get(f"{self._operator.runs}/{run}")
        nodes = sum(replica["replicas"] for replica in item["spec"]["pytorchReplicaSpecs"].values())
        role, index = pod["metadata"]["name"].removeprefix(f"{run}-").split("-")
        rank = str(int(index) + (1 if role == "worker" else 0))
        port = self._ports.setdefault(run, str(free_port()))
        return {
            "PYTHONUNBUFFERED": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
            "WORLD_SIZE": str(nodes * int(item["spec"]["nprocPerNode"])),
            "RANK": rank,
            "PET_NODE_RANK": rank,
            "PET_NPROC_PER_NODE": item["spec"]["nprocPerNode"],
            "PET_NNODES": str(nodes),
        }


@contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster at work; what it started is gone afterwards."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        while not stop.is_set():
            try:
                cluster.pass_over()
            except Exception as error:
                failures.append(error)
                return
            time.sleep(0.1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield cluster
    finally:
        stop.set()
        thread.join(timeout=30)
        for process in cluster.processes.values():
            _signal(process.popen, signal.SIGKILL)
            process.popen.wait()
    assert failures == []


def _owner(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["uid"])


def _signal(popen: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, number)
