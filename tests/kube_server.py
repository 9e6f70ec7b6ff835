"""The real kube-apiserver with its etcd, as envtest starts them: no kubelet, no controllers, no admission of its own.

Binaries come from the folder KUBEBUILDER_ASSETS, CustomResourceDefinitions from the folder CRD_DIR; what is missing is
an AssertionError that says so. Both variables are read when this file is imported: tests run in a cleaned environment.
"""

import json
import os
import signal
import subprocess
import uuid
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from engine.contract.errors import CineventError
from functions.dispatch.launchers.kube import Kube
from tests.servers import free_port, wait_until

_ASSETS = os.environ.get("KUBEBUILDER_ASSETS", "")
_CRD_DIR = os.environ.get("CRD_DIR", "")
_CRDS = ("kubeflow-pytorchjobs.yaml", "kueue-workloads.yaml")
_COLLECTIONS = ("/apis/kubeflow.org/v1/pytorchjobs", "/apis/kueue.x-k8s.io/v1beta1/workloads")
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class RealKube:
    """An API server on this machine, for as long as a test session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._token = uuid.uuid4().hex
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Ready, with the definitions of PyTorchJob and Kueue's Workload."""
        assert _ASSETS, "KUBEBUILDER_ASSETS is not set: it names the folder with etcd and kube-apiserver (envtest)"
        assert _CRD_DIR, "CRD_DIR is not set: it names the folder with the CustomResourceDefinitions"
        missing = [path for path in self._needed() if not path.exists()]
        assert not missing, f"not there: {', '.join(map(str, missing))}"
        self._run_etcd_and_apiserver()
        admin = self._door("default")
        wait_until(lambda: _answers(admin), timeout_s=60, what="kube-apiserver is ready")
        for name in _CRDS:
            admin.create(_DEFINITIONS, yaml.safe_load((Path(_CRD_DIR) / name).read_text()))
        wait_until(lambda: _established(admin) == len(_CRDS), what="the definitions are there")
        wait_until(lambda: all(_answers(admin, path) for path in _COLLECTIONS), what="their objects can be kept")
        admin.close()

    def open(self) -> Kube:
        """A door to a new namespace."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        admin = self._door(name)
        admin.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return admin

    def stop(self) -> None:
        # etcd last: an API server that lost it does not end by itself.
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)

    def _needed(self) -> list[Path]:
        return [
            *(Path(_ASSETS) / name for name in ("etcd", "kube-apiserver")),
            *(Path(_CRD_DIR) / name for name in _CRDS),
        ]

    def _run_etcd_and_apiserver(self) -> None:
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._spawn(
            "etcd",
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            "--unsafe-no-fsync",
        )
        key, tokens = self._folder / "key.pem", self._folder / "tokens.csv"
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = serialization.PrivateFormat.TraditionalOpenSSL
        key.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        tokens.write_text(f'{self._token},admin,admin,"system:masters"\n')
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers={client}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--cert-dir={self._folder / 'certs'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            # Its controller, which would make the accounts, does not run.
            "--disable-admission-plugins=ServiceAccount",
        )

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            command = [str(Path(_ASSETS) / name), *arguments]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))

    def _door(self, namespace: str) -> Kube:
        certificate = self._folder / "certs" / "apiserver.crt"
        wait_until(certificate.exists, what=f"kube-apiserver has a certificate; see {self._folder}")
        cluster = {"server": f"https://127.0.0.1:{self._port}", "certificate-authority": str(certificate)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "real", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "admin"}}],
            "current-context": "real",
        }
        path = self._folder / "kubeconfig"
        path.write_text(json.dumps(config))
        return Kube.open(namespace=namespace, kubeconfig=str(path))


def _answers(admin: Kube, path: str = "/version") -> bool:
    try:
        return bool(admin.get(path))
    except CineventError:
        return False


def _established(admin: Kube) -> int:
    return sum(
        any(
            c["type"] == "Established" and c["status"] == "True" for c in item.get("status", {}).get("conditions") or ()
        )
        for item in admin.list_all(_DEFINITIONS, labels={}, keep=dict)
    )
