"""Fetch: the objects below an S3 prefix become files of a folder; in parts, many at once, each checked.

In: an address, a folder. Out: the folder holds the same bytes. A fetch that was killed goes on where it was: parts that
are there are not read again. It does not know models, and nothing reads the folder before it returns.
"""

import logging
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from engine.adapters.checksum import Checksum, read_sums
from engine.adapters.journal import Journal, journal_of
from engine.adapters.s3 import Bucket, Changed, Object
from engine.adapters.turn import Told
from engine.contract.errors import JobFailed, Unavailable

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

SUMS = "SHA256SUMS"
# botocore tries a request three times; these are for bodies that end early, where it tries nothing.
_WAITS_S = (1.0, 4.0, 16.0)
# A part that comes slower than 100 kB/s hangs, though no single read of it takes long enough to say so.
_PART_TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much a fetch may take at a time."""

    num_connections: int = 8
    """One gives 85 to 90 MB/s (AWS's performance guidelines), so these 5.6 Gb/s (docs/decisions/0006)."""
    part_bytes: int = 32 * 2**20
    """What a killed fetch loses per connection; smaller parts cost more requests."""
    reserve_bytes: int = 2**30
    """Left free on the disk, for others."""


class _Damaged(JobFailed):
    """A file is not what its checksum says. Read once more before anybody hears of it."""


class _Stopped(Unavailable):
    """Another part has failed, and will say why."""


def fetch(bucket: Bucket, prefix: str, *, into: Path, limits: Limits, told: Told) -> None:
    """Make the folder `into` hold what is below `prefix`, checked and safe from a power loss.

    Raises JobFailed naming the file that is wrong, and Unavailable for what may heal.
    """
    try:
        _fetch(bucket, prefix, into=into, limits=limits, told=told)
    except (_Damaged, Changed) as error:
        _log.warning("%s; it is read once more", error)
        _fetch(bucket, prefix, into=into, limits=limits, told=told)


def _fetch(bucket: Bucket, prefix: str, *, into: Path, limits: Limits, told: Told) -> None:
    listed = _listing(bucket, prefix)
    sums = _sums(bucket, listed, f"s3://{bucket.name}/{prefix}")
    with writing(into):
        into.mkdir(exist_ok=True)
        remove_others(into, listed)
    make_room(into, sum(item.size_bytes for item in listed.values()), reserve_bytes=limits.reserve_bytes)
    copies = [_Copy(into / name, item, sums.get(name)) for name, item in listed.items()]
    with Journal(journal_of(into)) as journal:
        _Fetch(bucket, journal, num_bytes=sum(item.size_bytes for item in listed.values())).run(copies, limits, told)
    # Otherwise the folder could hold files of two versions.
    if _listing(bucket, prefix) != listed:
        raise Changed(f"s3://{bucket.name}/{prefix} was changed while it was read", retry_after_s=_WAITS_S[-1])


def _listing(bucket: Bucket, prefix: str) -> dict[str, Object]:
    """The objects by their paths in the folder."""
    listed = {item.key.removeprefix(prefix): item for item in bucket.list(prefix)}
    address = f"s3://{bucket.name}/{prefix}"
    if not listed:
        raise _failed(f"there is nothing below {address}")
    for name in listed:
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise _failed(f"{address}{name} cannot be a file's name; remove that object")
    return listed


def _sums(bucket: Bucket, listed: Mapping[str, Object], address: str) -> dict[str, Checksum]:
    """The checksums that whoever uploaded the files wrote beside them; empty if nobody did."""
    if (item := listed.get(SUMS)) is None:
        return {}
    text = _patiently(lambda: b"".join(bucket.read(item, offset=0, num_bytes=item.size_bytes)), threading.Event())
    try:
        sums = read_sums(text.decode())
    except ValueError as error:
        raise _failed(f"{address}{SUMS} cannot be read: {error}") from error
    if missing := sorted(sums.keys() - listed.keys()):
        raise _failed(f"{address}{missing[0]} is missing; {SUMS} has it")
    return sums


def remove_others(folder: Path, names: Collection[str]) -> None:
    """Files of an earlier version or of another source go."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in names:
            path.unlink()


def make_room(folder: Path, num_bytes: int, *, reserve_bytes: int) -> None:
    """Raises JobFailed unless `folder` can grow to this size."""
    there = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    needed, free = num_bytes - there, shutil.disk_usage(folder).free
    if needed > max(0, free - reserve_bytes):
        raise _failed(
            f"the disk of {folder.parent} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed, and"
            f" {reserve_bytes / 1e9:.1f} GB must stay free: make room, or set CINEVENT_MODELS_DIR to another disk"
        )


class _Copy:
    """One file on its way."""

    def __init__(self, path: Path, item: Object, checksum: Checksum | None) -> None:
        self.path = path
        self.item = item
        self.checksum = checksum
        self._lock = threading.Lock()
        self._missing = 0

    def parts(self, part_bytes: int) -> "list[_Part]":
        """Its parts; an empty file has one, of no bytes."""
        size = self.item.size_bytes
        starts = range(0, size, part_bytes) or range(1)
        self._missing = len(starts)
        return [_Part(copy=self, offset=start, num_bytes=min(part_bytes, size - start)) for start in starts]

    def is_whole(self) -> bool:
        """To be asked once after each part: whether that was the last."""
        with self._lock:
            self._missing -= 1
            return not self._missing


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    copy: _Copy
    offset: int
    num_bytes: int

    @property
    def name(self) -> str:
        """What the journal calls it: of this version of the object."""
        return f"{self.copy.item.key} {self.copy.item.etag} {self.offset} {self.num_bytes}"


class _Fetch:
    """Brings the parts of many files, several at a time."""

    def __init__(self, bucket: Bucket, journal: Journal, *, num_bytes: int) -> None:
        self._bucket = bucket
        self._journal = journal
        self._num_bytes = num_bytes
        self._stop = threading.Event()

    def run(self, copies: list[_Copy], limits: Limits, told: Told) -> None:
        for copy in copies:
            with writing(copy.path):
                copy.path.parent.mkdir(parents=True, exist_ok=True)
                with copy.path.open("ab") as file:
                    file.truncate(copy.item.size_bytes)
        done = 0
        with ThreadPoolExecutor(limits.num_connections, thread_name_prefix="fetch") as pool:
            tasks = [pool.submit(self._bring, part) for copy in copies for part in copy.parts(limits.part_bytes)]
            try:
                for task in as_completed(tasks):
                    done += task.result()
                    told(done, self._num_bytes)
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)

    def _bring(self, part: _Part) -> int:
        """The part is on the disk, and if it was the file's last, the file is right; returns the part's size."""
        path = part.copy.path
        with writing(path):
            if not self._journal.has(part.name, path, offset=part.offset, num_bytes=part.num_bytes):
                _patiently(lambda: self._read(part), self._stop)
            if part.copy.is_whole():
                self._check(part.copy)
        return part.num_bytes

    def _read(self, part: _Part) -> None:
        value, deadline = 0, time.monotonic() + _PART_TIMEOUT_S
        with part.copy.path.open("r+b") as file:
            file.seek(part.offset)
            for chunk in self._bucket.read(part.copy.item, offset=part.offset, num_bytes=part.num_bytes):
                if self._stop.is_set():
                    raise _Stopped(f"{part.copy.path} is not needed any more", retry_after_s=_WAITS_S[-1])
                if time.monotonic() > deadline:
                    why = f"{part.copy.path}: a part did not come within {_PART_TIMEOUT_S:g} s"
                    raise Unavailable(why, retry_after_s=_WAITS_S[-1])
                file.write(chunk)
                value = zlib.crc32(chunk, value)
        self._journal.add(part.name, value)

    def _check(self, copy: _Copy) -> None:
        checksum = copy.checksum or self._bucket.checksum(copy.item)
        if checksum is None:
            _log.warning("%s: only its size was compared; %s beside it would tell more", copy.path, SUMS)
        elif not checksum.holds(copy.path):
            copy.path.unlink()
            raise _Damaged(
                "model_load_failed",
                f"s3://{self._bucket.name}/{copy.item.key} is damaged: its {checksum.algorithm} is not"
                f" {checksum.value}; upload it again",
                retryable=False,
            )
        with copy.path.open("rb") as file:
            os.fsync(file.fileno())


def _patiently(read: Callable[[], _T], stop: threading.Event) -> _T:
    """What `read` returns, tried again when that may help. Raises what the last try raised."""
    for wait_s in _WAITS_S:
        try:
            return read()
        except (Changed, _Stopped):
            raise
        except Unavailable as error:
            _log.warning("%s; once more in %g s", error, wait_s)
            stop.wait(wait_s)
    return read()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full, broken or read-only leaves as JobFailed, naming `path`."""
    try:
        yield
    except OSError as error:
        raise _failed(f"{error.filename or path} cannot be written: {error.strerror}") from error


def _failed(message: str) -> JobFailed:
    return JobFailed("model_load_failed", message, retryable=False)
