"""What every launcher promises, held by the local one with small commands in the engine's place."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.contract.job import run_name
from functions.dispatch.launcher import ActiveRun, Phase
from functions.dispatch.launchers.local import LocalLauncher, manifest
from tests.make import JOB, PROMPT, TENANT, a_job, a_plan
from tests.servers import wait_until

RUN = run_name(JOB, 1)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """The folder of runs; whatever still runs in it is ended."""
    root = tmp_path / "runs"
    yield root
    LocalLauncher(root).stop_all()


def launched(root: Path, script: str, *, attempt: int = 1) -> LocalLauncher:
    """A launcher that has started `script` as this attempt's run."""
    launcher = LocalLauncher(root, command=f"/bin/sh -c '{script}'")
    launcher.launch(a_job(), attempt=attempt, plan=a_plan(), environ=os.environ)
    return launcher


def phase(launcher: LocalLauncher) -> Phase:
    return launcher.observe(RUN).phase


def test_a_run_that_was_never_started_is_absent(runs: Path) -> None:
    assert phase(LocalLauncher(runs)) is Phase.ABSENT


def test_a_run_that_ends_well_has_succeeded(runs: Path) -> None:
    launcher = launched(runs, "exit 0")

    wait_until(lambda: phase(launcher) is Phase.SUCCEEDED)


def test_a_failed_run_shows_its_exit_code_and_the_end_of_its_log(runs: Path) -> None:
    launcher = launched(runs, "echo the reason; exit 3")
    wait_until(lambda: phase(launcher) is Phase.FAILED)

    failure = launcher.observe(RUN).failure

    assert failure is not None
    assert ("3" in failure.message, failure.log_tail) == (True, "the reason")


def test_launching_an_attempt_again_starts_nothing(runs: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    launcher = launched(runs, f"echo once >> {count}; sleep 60")
    wait_until(count.exists)

    launched(runs, f"echo twice >> {count}; sleep 60")

    assert launcher.active() == [ActiveRun(name=RUN, tenant=TENANT, num_gpus=2)]
    assert count.read_text() == "once\n"


def test_another_launcher_finds_the_run(runs: Path) -> None:
    launched(runs, "sleep 60")

    assert [run.name for run in LocalLauncher(runs).active()] == [RUN]


def test_cancel_ends_the_run_and_all_its_children(runs: Path, tmp_path: Path) -> None:
    child = tmp_path / "child"
    launcher = launched(runs, f"sleep 60 & echo $! > {child}; wait")
    wait_until(lambda: child.exists() and child.read_text())

    launcher.cancel(RUN)

    assert phase(launcher) is not Phase.RUNNING
    wait_until(lambda: not _is_alive(int(child.read_text())))


def test_cancel_ends_a_run_that_ignores_sigterm_within_ten_seconds(runs: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    launcher = launched(runs, f'trap "" TERM; touch {ready}; while true; do sleep 0.1; done')
    wait_until(ready.exists)
    start = time.monotonic()

    launcher.cancel(RUN)

    assert phase(launcher) is not Phase.RUNNING
    assert time.monotonic() - start < 10


def test_cancelling_what_is_not_there_is_success(runs: Path) -> None:
    LocalLauncher(runs).cancel(RUN)


def test_a_run_that_was_killed_has_failed_without_an_exit_code(runs: Path) -> None:
    launcher = launched(runs, "echo alive; sleep 60")
    wait_until(lambda: (runs / RUN / "log").exists() and (runs / RUN / "log").read_text())

    os.killpg(int((runs / RUN / "group").read_text()), signal.SIGKILL)

    wait_until(lambda: phase(launcher) is Phase.FAILED)


def test_a_run_that_was_put_aside_can_be_launched_again_under_its_name(runs: Path) -> None:
    launcher = launched(runs, "sleep 60")
    launcher.stop_all()
    assert phase(launcher) is Phase.PUT_ASIDE

    launched(runs, "sleep 60")

    assert phase(launcher) is Phase.RUNNING


def test_the_prompt_is_in_no_manifest() -> None:
    command = manifest(a_job(), attempt=1, plan=a_plan(), environ={}, command="")

    assert PROMPT not in str(command)
    assert "--nproc-per-node=2" in command.arguments


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
