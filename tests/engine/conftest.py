"""Fixtures of the engine's tests: the tiny models, a run of one process, what two ranks computed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging

from engine.mesh import Ranks, join
from engine.models import tiny
from tests.engine.loras import write_loras


@pytest.fixture(scope="session", autouse=True)
def quiet_libraries() -> None:
    """One thread, as each of several ranks has; and no advice of diffusers on standard error."""
    torch.set_num_threads(1)
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all processes of the tests keep what they compile: nothing is left from earlier ones."""
    directory = tmp_path_factory.mktemp("compiled")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(directory)
    # A pool of compilers takes longer to start than our few layers to compile.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return directory


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models, and LoRAs beside one of them."""
    directory = tmp_path_factory.mktemp("models")
    tiny.build(directory)
    write_loras(directory)
    return directory


@pytest.fixture(scope="session")
def ranks() -> Ranks:
    """This process, alone."""
    return join(rank=0, local_rank=0, world_size=1, num_threads=1)


@pytest.fixture(scope="session")
def many_ranks(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what real ranks computed, under every plan, as tests/engine/many_ranks.py writes it."""
    folder = tmp_path_factory.mktemp("many_ranks")
    command = [sys.executable, "-m", "tests.engine.many_ranks", str(models), str(folder)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0
    return folder
