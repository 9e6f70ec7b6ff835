"""Runs of the real program that end before their time, one after the other: `python -m tests.engine.lives SCRIPT`.

SCRIPT is a JSON list of lives. Each has so many ranks, forked from this process that has imported everything (imports
are most of a short run), and what ends it: a signal to all ranks, or to one, once a checkpoint of a step is there.
Printed: the exit codes of each life's ranks, as JSON lines.
"""

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import engine.worker  # noqa: F401  (imported for the children)
from engine.__main__ import main as engine_main
from tests.servers import free_port


@dataclass(frozen=True)
class Life:
    """One run of the engine on `num_ranks` ranks."""

    request: str
    out: str
    models: str
    num_ranks: int
    end: str = ""
    """Name of the signal; empty: it may come to its own end."""
    at_step: int = 0
    """The signal comes once a checkpoint of this step or a later one is there."""
    only_rank: int | None = None
    """The rank that gets the signal; None: all of them."""

    @property
    def log(self) -> Path:
        return Path(self.out) / "log"


def to_json(lives: list[Life]) -> str:
    return json.dumps([asdict(life) for life in lives])


def live(life: Life) -> list[int]:
    """The exit codes of the ranks, negative for a signal."""
    Path(life.out).mkdir(parents=True, exist_ok=True)
    begun_at = newest_step(life)
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(life.num_ranks)}
    os.environ |= {**places, "CINEVENT_CHECKPOINT_INTERVAL_S": "0.000001"}
    children = [fork(rank, life) for rank in range(life.num_ranks)]
    if life.end:
        # A step of its own in any case: the life before may have gone further than it was to.
        wait_for_step(max(life.at_step, begun_at + 1), life, children)
        for rank, child in enumerate(children):
            if life.only_rank in (None, rank):
                os.kill(child, signal.Signals[life.end])
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def newest_step(life: Life) -> int:
    return max((int(path.stem) for path in (Path(life.out) / "checkpoints").glob("*.safetensors")), default=0)


def wait_for_step(step: int, life: Life, children: list[int]) -> None:
    while newest_step(life) < step:
        assert os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, life.log.read_text()
        time.sleep(0.001)


def fork(rank: int, life: Life) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    log = os.open(life.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = engine_main(["--request", life.request, "--out", life.out, "--models", life.models])
    os._exit(status)


def main(script: str) -> None:
    for life in json.loads(script):
        sys.stdout.write(json.dumps(live(Life(**life))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
