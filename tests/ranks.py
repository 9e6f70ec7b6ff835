"""Ranks forked from this process: imports take most of a short run, and a fork has them already."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.mesh import Ranks, join
from tests.servers import free_port


def on_ranks(num_ranks: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` gives on each of so many new ranks, one thread each. This process must have no other threads."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_ranks)}
    with tempfile.TemporaryDirectory() as folder:
        results = [Path(folder) / f"{rank}.pt" for rank in range(num_ranks)]
        children = [_fork(rank, num_ranks, work, result) for rank, result in enumerate(results)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert statuses == [0] * num_ranks, f"{num_ranks} ranks ended with {statuses}"
        return [torch.load(result, weights_only=False) for result in results]


def _fork(rank: int, num_ranks: int, work: Callable[[Ranks], Any], result: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.environ["RANK"] = str(rank)
        ranks = join(rank=rank, local_rank=rank, world_size=num_ranks, num_threads=1)
        torch.save(work(ranks), result)
        ranks.close()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)
