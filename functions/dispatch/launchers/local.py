"""The local launcher: a run is a torchrun child on this machine, with a folder that holds its lock, log and exit code.

The folder is the run's whole state, so that a dispatch that was restarted finds its runs again: the lock file is locked
by the run itself as long as it lives (the kernel lets go when it dies, however it dies), and a process id is only ever
used while the lock is held, so that it cannot be somebody else's.
"""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from engine.contract.errors import Unavailable
from engine.contract.job import Job, run_name
from engine.contract.plan import Plan
from functions.dispatch.launcher import ActiveRun, Failure, Observation, Phase

# The shell notes its process group, leaves the run in the background and ends: the run is nobody's child, so that it
# outlives dispatch and needs nobody to reap it. The exit code comes last and whole.
_SCRIPT = 'echo $$ > group; { "$@" > log 2>&1 < /dev/null; echo $? > exit.tmp; mv exit.tmp exit; } &'
# From SIGTERM to SIGKILL, inside the ten seconds that a cancel may take: nothing of the run is needed any more.
_CANCEL_S = 5.0
# The same when the run is to go on later: time to finish its step and to leave a checkpoint.
_DRAIN_S = 60
# Between the folder and the lock lies one fork; a folder without a run for this long belongs to a dispatch that died.
_START_S = 10.0
# On a processor the number of threads changes the rounding: with one each, one process and many make the same video,
# and ranks do not fight for cores. The user's own variable wins.
_THREADS = {"OMP_NUM_THREADS": "1"}
_TAIL_BYTES = 3000
_KEEP_S = 7 * 24 * 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What is started: pure data."""

    arguments: tuple[str, ...]
    environ: Mapping[str, str]


def manifest(job: Job, *, attempt: int, plan: Plan, environ: Mapping[str, str], command: str) -> Command:
    """The child for one attempt: torchrun, or `command` in its place. No prompt is in it: the engine reads the log."""
    torchrun = (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"),
        f"--shutdown-timeout={_DRAIN_S}",
        *(f"--nnodes={plan.num_nodes}", f"--nproc-per-node={plan.num_processes}", "-m", "engine"),
    )
    own = {
        "CINEVENT_JOB": job.id,
        "CINEVENT_TENANT": job.tenant,
        "CINEVENT_ATTEMPT": str(attempt),
        "CINEVENT_PLAN": json.dumps(plan.to_json()),
    }
    return Command(arguments=tuple(shlex.split(command)) or torchrun, environ={**_THREADS, **environ, **own})


def classify(
    *, is_alive: bool, has_begun: bool, exit_code: int | None, age_s: float, log_tail: str
) -> tuple[Phase, Failure | None]:
    """The phase of a run that has a folder, from what is in it."""
    if exit_code == 0:
        return Phase.SUCCEEDED, None
    if is_alive or (not has_begun and age_s < _START_S):
        return Phase.RUNNING, None
    how = "without an exit code: it was killed, or the machine went down" if exit_code is None else f"with {exit_code}"
    return Phase.FAILED, Failure(code="engine_crashed", message=f"the run ended {how}", log_tail=log_tail)


class LocalLauncher:
    """Runs on this machine, one folder each below `root`."""

    name = "local"

    def __init__(self, root: Path, *, command: str = "") -> None:
        self._root = root.resolve()
        self._command = command

    def launch(self, job: Job, *, attempt: int, plan: Plan, environ: Mapping[str, str]) -> None:
        """Start the run of this attempt; one that exists already is success."""
        folder = self._root / run_name(job.id, attempt)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._prune()
            if (folder / "stopped").exists() and not _is_locked(folder):
                shutil.rmtree(folder)
            # mkdir is the compare-and-set: of two launches of one attempt, one makes the folder.
            with suppress(FileExistsError):
                folder.mkdir()
                (folder / "run.json").write_text(json.dumps({"tenant": job.tenant, "num_gpus": plan.world_size}))
                _start(folder, manifest(job, attempt=attempt, plan=plan, environ=environ, command=self._command))
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"cannot start {folder.name}: {error}", retry_after_s=5) from error

    def observe(self, run: str, *, is_fresh: bool = False) -> Observation:  # noqa: ARG002  # nothing here is old
        """Where the run is."""
        folder = self._root / run
        if not folder.exists():
            return Observation(phase=Phase.ABSENT)
        if (folder / "stopped").exists() and not _is_locked(folder):
            return Observation(phase=Phase.PUT_ASIDE)
        # The exit code is read after the lock: a run that ends between the two reads has written it.
        is_alive = _is_locked(folder)
        launched_at = folder.stat().st_ctime
        phase, failure = classify(
            is_alive=is_alive,
            has_begun=(folder / "group").exists(),
            exit_code=_number(folder / "exit"),
            age_s=time.time() - launched_at,
            log_tail=_tail(folder / "log"),
        )
        return Observation(phase=phase, launched_at=datetime.fromtimestamp(launched_at, UTC), failure=failure)

    def cancel(self, run: str) -> None:
        """End the run: SIGTERM to all of it, SIGKILL after five seconds."""
        folder = self._root / run
        self._end(folder, patience_s=_CANCEL_S)

    def active(self, *, is_fresh: bool = False) -> list[ActiveRun]:  # noqa: ARG002
        """All runs that are RUNNING."""
        return [_active(self._root / name) for name in self._running()]

    def tenant_of(self, run: str) -> str:
        """Whose this run is, by a file in its folder."""
        return _active(self._root / run).tenant

    def stop_all(self) -> None:
        """End every run so that it may be launched again under its name: the system goes down, not the jobs."""
        for run in self._running():
            (self._root / run / "stopped").touch()
            self._end(self._root / run, patience_s=_DRAIN_S)

    def _running(self) -> list[str]:
        if not self._root.exists():
            return []
        return [f.name for f in self._root.iterdir() if f.is_dir() and self.observe(f.name).phase is Phase.RUNNING]

    def _end(self, folder: Path, *, patience_s: float) -> None:
        for sign, limit_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 2.0)):
            end = time.monotonic() + limit_s
            if _is_locked(folder):
                _signal(folder, sign)
            while _is_locked(folder) and time.monotonic() < end:
                time.sleep(0.02)

    def _prune(self) -> None:
        for folder in self._root.iterdir():
            if time.time() - folder.stat().st_mtime > _KEEP_S and not _is_locked(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, command: Command) -> None:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            ["/bin/sh", "-c", _SCRIPT, "run", *command.arguments],
            cwd=folder,
            env=dict(command.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # The run and its children share this open file, and with it the lock.
            pass_fds=(lock.fileno(),),
            # A process group of its own: one signal reaches all of it.
            start_new_session=True,
            check=True,
            timeout=_START_S,
        )


def _active(folder: Path) -> ActiveRun:
    try:
        known = json.loads((folder / "run.json").read_text())
    except (FileNotFoundError, ValueError):
        # Its launch was cut short right here; it begins all the same, and holds a place.
        known = {"tenant": "", "num_gpus": 0}
    return ActiveRun(name=folder.name, **known)


def _is_locked(folder: Path) -> bool:
    try:
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _signal(folder: Path, sign: signal.Signals) -> None:
    group = _number(folder / "group")
    if group is not None:
        with suppress(ProcessLookupError):
            os.killpg(group, sign)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
