"""The tiny models, built once, and one running system for the tests that only use it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.system import System, a_system


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models."""
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, "-m", "engine.models.tiny", folder], check=True, capture_output=True, timeout=100)
    return folder


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[System]:
    """`cinevent local`, ready."""
    with a_system(tmp_path_factory.mktemp("system") / "data", models=models) as running:
        yield running
