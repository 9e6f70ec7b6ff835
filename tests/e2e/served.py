"""submit as it is served: under gunicorn on a port of its own, over a log of its own."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from functions.keys import add_key, new_key
from tests.servers import Child, NatsServer, accepts, child, free_port, wait_until


@dataclass(frozen=True)
class Served:
    """A running submit; `headers` let a client in."""

    port: int
    headers: dict[str, str]
    nats: NatsServer
    process: Child
    """gunicorn's arbiter; its only child is the worker."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def worker(self) -> int:
        """The worker's process id."""
        return int(
            Path(f"/proc/{self.process.process.pid}/task/{self.process.process.pid}/children").read_text().split()[0]
        )

    def memory_bytes(self) -> int:
        """What the worker holds in memory."""
        status = Path(f"/proc/{self.worker}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


@contextmanager
def a_submit(folder: Path, *, env: Mapping[str, str] | None = None) -> Iterator[Served]:
    """A submit that asks for a key."""
    key, text = new_key(tenant="acme", scopes=["read", "write"], expires_at=None, note="")
    add_key(folder / "keys.json", key)
    nats = NatsServer(folder)
    nats.start()
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "python:functions.gunicorn_conf"]
    app = ["--bind", f"127.0.0.1:{port}", "functions.submit.app:create_app()"]
    settings = {
        "CINEVENT_NATS_URL": nats.url,
        "CINEVENT_STORE_URL": f"file:{folder / 'store'}",
        "CINEVENT_KEYS_FILE": str(folder / "keys.json"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    try:
        with child([*command, *app], env={**settings, **(env or {})}, log=folder / "submit.log") as process:
            wait_until(lambda: accepts(port), what="submit listens")
            yield Served(port=port, headers={"Authorization": f"Bearer {text}"}, nats=nats, process=process)
    finally:
        nats.kill()
