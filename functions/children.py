"""Child processes of one parent: started with a log file each, started again when they die, ended in order.

A child that cannot stay up is an error with the last lines of its log. Children die with their parent, however it dies.
"""

import ctypes
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.contract.errors import CineventError

# More than the 25 s in which sources and functions finish what they hold.
_STOP_S = 30.0
# A child that dies this often in a minute will not come up by being started once more.
_MAX_DEATHS = 5
_DEATHS_WINDOW_S = 60.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """What to run; `pass_fds` stay open in it."""

    name: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    pass_fds: tuple[int, ...] = ()


class Family:
    """All children of this process; leaving the context ends those that are left."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, tuple[Child, subprocess.Popen[bytes]]] = {}
        self._deaths: dict[str, list[float]] = defaultdict(list)

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(*reversed(self._running))

    def start(self, child: Child) -> None:
        """Start a child; what it prints goes to its log."""
        with (self._logs / f"{child.name}.log").open("ab") as log:
            process = subprocess.Popen(
                child.arguments,
                env=dict(child.environ),
                pass_fds=child.pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Not this terminal's Ctrl-C: the parent ends its children, in order.
                start_new_session=True,
                # Safe here: this process has one thread.
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        self._running[child.name] = (child, process)

    def check(self) -> None:
        """Start again whatever has died. Raises CineventError about a child that does not stay up."""
        for name, (child, process) in list(self._running.items()):
            if process.poll() is None:
                continue
            now = time.monotonic()
            self._deaths[name] = [at for at in self._deaths[name] if now - at < _DEATHS_WINDOW_S] + [now]
            if len(self._deaths[name]) >= _MAX_DEATHS:
                raise CineventError(
                    f"{name} does not stay up (exit code {process.returncode}): {self._last_line(name)}"
                )
            time.sleep(0.1 * len(self._deaths[name]))
            self.start(child)

    def watch(self, is_over: Callable[[], bool]) -> None:
        """Check the children until `is_over()`."""
        while not is_over():
            self.check()
            time.sleep(0.1)

    def stop(self, *names: str) -> None:
        """End these children together: SIGTERM, and SIGKILL for what is still there after 30 s."""
        ending = [self._running.pop(name)[1] for name in names if name in self._running]
        for process in ending:
            process.terminate()
        end = time.monotonic() + _STOP_S
        for process in ending:
            try:
                process.wait(timeout=max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _last_line(self, name: str) -> str:
        path = self._logs / f"{name}.log"
        lines = path.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1][:300] if lines else 'no output'} (see {path})"


def _die_with_parent() -> None:
    # In the child, before it becomes its program: SIGTERM when the parent is gone, even by kill -9.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
