"""The tiny models, built once, and one running system for the tests that only use it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.adapters.bus import Bus
from engine.contract.settings import Settings
from tests.e2e.door import Door, a_door
from tests.e2e.system import System, a_system
from tests.servers import NatsServer


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


@pytest.fixture(scope="session")
def shared_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A log that tests share: each takes a tenant of its own, and none restarts the server."""
    folder = tmp_path_factory.mktemp("shared")
    server = NatsServer(folder)
    server.start()
    yield Settings(nats_url=server.url, store_url=f"file:{folder / 'store'}")
    server.kill()


@pytest.fixture(scope="session")
def shared_bus(shared_settings: Settings) -> Iterator[Bus]:
    opened = Bus.open(shared_settings)
    # Waits until it is connected and the streams are made.
    opened.bounds("CINEVENT_JOBS")
    yield opened
    opened.close()


@pytest.fixture
def door(shared_bus: Bus, shared_settings: Settings) -> Door:
    """submit over the shared log, for a tenant of its own."""
    return a_door(shared_bus, shared_settings)
