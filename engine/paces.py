"""Paces: the pace of earlier runs, kept in the store between them.

What the store does not answer in time, or what cannot be read, is as if there were none: estimates are worth no wait
and no failed job.
"""

import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engine.adapters.store import Store
from engine.contract.errors import CineventError, NotFound
from engine.pace import Pace

T = TypeVar("T")

_log = logging.getLogger(__name__)

# A store answers in milliseconds, or in a second on a bad day. The first word of progress waits for the reading; for
# the writing nobody waits but the process that would otherwise end.
_READ_TIMEOUT_S = 2.0
_WRITE_TIMEOUT_S = 5.0


class Paces:
    """The pace of one kind of runs, under `key`. Never raises."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key

    def recall(self) -> Pace | None:
        """That of earlier runs; None without any."""
        return _in_time(self._read, timeout_s=_READ_TIMEOUT_S)

    def keep(self, pace: Pace) -> None:
        """Store this one in its place."""
        _in_time(lambda: self._write(pace), timeout_s=_WRITE_TIMEOUT_S)

    def _read(self) -> Pace | None:
        try:
            return Pace.from_json(self._store.read(self._key))
        except NotFound:
            _log.info("no earlier run tells how long this one will take")
        except (CineventError, ValueError) as error:
            _log.warning("the pace of earlier runs cannot be read: %s", error)
        return None

    def _write(self, pace: Pace) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="cinevent-") as folder:
                path = Path(folder) / "pace.json"
                path.write_bytes(pace.to_json())
                self._store.put(self._key, path, content_type="application/json")
        except (CineventError, OSError) as error:
            _log.warning("the pace of this run is not kept: %s", error)


def _in_time(act: Callable[[], T], *, timeout_s: float) -> T | None:
    """What `act` returns, or None when it takes too long; then it goes on without anybody."""
    found: list[T] = []
    # A daemon, which a pool's threads are not: the process must be able to end meanwhile.
    thread = threading.Thread(target=lambda: found.append(act()), name="pace", daemon=True)
    thread.start()
    thread.join(timeout=timeout_s)
    if not found:
        _log.warning("the store took more than %g s for the pace of earlier runs", timeout_s)
    return found[0] if found else None
