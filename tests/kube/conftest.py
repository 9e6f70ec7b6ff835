"""A cluster for the tests of this folder: the small API server; with CINEVENT_TEST_KUBE=real the real one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from functions.dispatch.launchers.kube import Kube
from tests.kube_api import KubeApi


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


@pytest.fixture
def kube(kubeconfig: Path) -> Iterator[Kube]:
    opened = Kube.open(kubeconfig=str(kubeconfig))
    yield opened
    opened.close()
