"""The whole system as a user starts it: `cinevent local` on free ports, and the command line against it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import Child, child, free_port, wait_until

CINEVENT = (sys.executable, "-m", "functions.cli")


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class System:
    """A running system; `process` is `cinevent local`."""

    process: Child
    data: Path
    addresses: dict[str, Any]

    def cinevent(self, *arguments: str, env: dict[str, str] | None = None, timeout_s: float = 60.0) -> Done:
        """Run one command against this system."""
        own = {"CINEVENT_PUBLIC_URL": self.addresses["submit"], "CINEVENT_NATS_URL": self.addresses["nats"]}
        return cinevent(*arguments, env={**own, **(env or {})}, timeout_s=timeout_s)

    def submit(self, *more: str) -> str:
        """Submit a small request; returns the job's id."""
        done = self.cinevent("submit", "a paper boat", "--json", *more)
        assert done.code == 0, done.err
        return str(done.json["id"])

    def state(self, job: str) -> dict[str, Any]:
        """The job as `cinevent get` shows it."""
        found: dict[str, Any] = self.cinevent("get", job, "--json").json
        return found

    def await_state(self, job: str, *states: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """The job, once it is in one of these states."""
        wait_until(lambda: self.state(job)["state"] in states, timeout_s=timeout_s, what=f"{job} is {states}")
        return self.state(job)


def cinevent(*arguments: str, env: dict[str, str] | None = None, timeout_s: float = 60.0) -> Done:
    """Run one command."""
    done = subprocess.run(
        [*CINEVENT, *arguments], env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=timeout_s
    )
    return Done(code=done.returncode, out=done.stdout, err=done.stderr)


@contextlib.contextmanager
def a_system(
    data: Path, *, models: Path, nats_port: int = 0, processes: int = 1, env: dict[str, str] | None = None
) -> Iterator[System]:
    """A system on free ports with its data in `data`; killed with all it started if the test did not end it."""
    ready = data.with_suffix(".ready.json")
    ready.unlink(missing_ok=True)
    ports = ("--port", "0", "--nats-port", str(nats_port or free_port()))
    folders = ("--data", str(data), "--models", str(models), "--ready-file", str(ready))
    command = [*CINEVENT, "local", *ports, *folders, "--processes", str(processes)]
    log = data.with_suffix(".log")
    try:
        with child(command, env=env or {}, log=log) as process:
            wait_until(lambda: ready.exists() or process.process.poll() is not None, timeout_s=60)
            assert ready.exists(), log.read_text()
            yield System(process=process, data=data, addresses=json.loads(ready.read_text()))
    finally:
        power_off(data)


def left(data: Path) -> list[int]:
    """Processes that belong to the system with this data folder."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
                if f"{data}/".encode() in words or f"{data}\0".encode() in words:
                    found.append(int(folder.name))
    return found


def power_off(data: Path) -> None:
    """kill -9 of everything at once, until nothing is left."""
    while pids := left(data):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
