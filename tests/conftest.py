"""Fixtures for all tests: a clean environment, a real nats-server, a sink, a bus, an API server of Kubernetes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.adapters.bus import Bus
from engine.adapters.history import History
from engine.contract.settings import Settings
from functions.dispatch.launchers.kube import Kube
from tests.kube_api import KubeApi
from tests.kube_server import RealKube
from tests.servers import NatsServer, Sink


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's shell reaches a test."""
    for name in [name for name in os.environ if name.startswith(("CINEVENT_", "K_", "AWS_", "KUBE"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def settings(nats: NatsServer, tmp_path: Path) -> Settings:
    return Settings(
        nats_url=nats.url,
        store_url=f"file:{tmp_path / 'store'}",
        models_dir=str(tmp_path / "models"),
        runs_dir=str(tmp_path / "runs"),
    )


@pytest.fixture
def bus(settings: Settings) -> Iterator[Bus]:
    opened = Bus.open(settings)
    yield opened
    opened.close()


@pytest.fixture
def history(bus: Bus) -> History:
    return History(bus)


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """An S3 service: moto's server, over real HTTP."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def sink() -> Iterator[Sink]:
    server = Sink()
    yield server
    server.close()


@pytest.fixture
def api() -> Iterator[KubeApi]:
    """The small API server, whose answers a test may change."""
    server = KubeApi()
    yield server
    server.close()


@pytest.fixture
def kubeconfig(api: KubeApi, tmp_path: Path) -> Path:
    """The way to it."""
    return api.kubeconfig(tmp_path / "kubeconfig")


@pytest.fixture(scope="session")
def real_kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKube]:
    """A kube-apiserver with its etcd; what is missing for it is said."""
    server = RealKube(tmp_path_factory.mktemp("kube"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def kube(request: pytest.FixtureRequest) -> Iterator[Kube]:
    """The door to the small API server, or with --kube=real to a namespace of its own in the real one."""
    if request.config.getoption("--kube") == "real":
        opened = request.getfixturevalue("real_kube").open()
    else:
        opened = Kube.open(kubeconfig=str(request.getfixturevalue("kubeconfig")))
    yield opened
    opened.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kube", choices=("small", "real"), default="small", help="which API server: make test-kube")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --kube=real only what speaks to an API server and does not change how it answers."""
    if config.getoption("--kube") != "real":
        return
    kept = [item for item in items if {"kube"} <= set(item.fixturenames) and "api" not in item.fixturenames]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
