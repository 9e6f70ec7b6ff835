"""Turn: one process of all that share a folder, also those of other pods of the node, does a thing; the others wait.

The lock is flock's on a file: it ends with its holder, however that ends. Its holder writes into the file who it is and
how far, so that those who wait can say what they wait for.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.contract.errors import Unavailable

_log = logging.getLogger(__name__)

Told = Callable[[int, int], None]
"""Hears how many bytes of how many are there; 0 of them where that is not known."""

_POLL_S = 0.5
# As often as somebody who waits wants to hear something, and often enough for CINEVENT_STALL_S.
_TELL_S = 10.0
_RETRY_AFTER_S = 30.0
# Written and read by one call each, so that nobody sees half of it.
_NOTE_BYTES = 256


class Turn:
    """What the holder of a lock has."""

    def __init__(self, handle: int, *, what: str, told: Told | None) -> None:
        self.handle = handle
        """Of the open lock file: a child that inherits it holds the lock too."""
        self._what = what
        self._told = told
        self._told_at = -_TELL_S

    def tell(self, done: int, total: int) -> None:
        """So many bytes are there; passed on now and then."""
        if time.monotonic() - self._told_at < _TELL_S:
            return
        self._told_at = time.monotonic()
        _log.info("%s", _progress(self._what, done, total))
        self.note(done, total)
        if self._told:
            self._told(done, total)

    def note(self, done: int, total: int) -> None:
        """Write into the lock file who holds it and how far it is."""
        note = f"{done} {total} process {os.getpid()} on {socket.gethostname()}"
        os.pwrite(self.handle, note.encode().ljust(_NOTE_BYTES), 0)


@contextmanager
def take(path: Path, *, what: str, patience_s: float, told: Told | None) -> Iterator[Turn]:
    """Wait for the lock on `path`, at most until its holder has been without progress for `patience_s`.

    `told` hears the holder's progress meanwhile. Raises Unavailable naming the holder.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _wait(handle, path, what=what, patience_s=patience_s, told=told)
        turn = Turn(handle, what=what, told=told)
        turn.note(0, 0)
        yield turn
    finally:
        os.close(handle)


def _wait(handle: int, path: Path, *, what: str, patience_s: float, told: Told | None) -> None:
    seen, since = b"", time.monotonic()
    while not _try(handle):
        note = os.pread(handle, _NOTE_BYTES, 0)
        done, total, holder = _read(note)
        if note != seen:
            seen, since = note, time.monotonic()
            _log.info("waits for %s, which fetches %s", holder, _progress(what, done, total))
            if told and done:
                told(done, total)
        if time.monotonic() - since > patience_s:
            message = (
                f"{what} is being fetched by {holder}, which made no progress for {patience_s:g} s; it holds {path}"
            )
            raise Unavailable(message, retry_after_s=_RETRY_AFTER_S)
        time.sleep(_POLL_S)


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(note: bytes) -> tuple[int, int, str]:
    done, total, holder = ([*note.decode(errors="replace").split(maxsplit=2), "", "", ""])[:3]
    return (int(done), int(total), holder.strip()) if done.isdigit() and total.isdigit() else (0, 0, "another process")


def _progress(what: str, done: int, total: int) -> str:
    return f"{what}: {done / 1e9:.2f} GB" + (f" of {total / 1e9:.2f} GB" if total else "")
