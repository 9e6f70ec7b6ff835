"""Checksums of files: what one should be, and what it is. No network.

A file is read once, in small pieces: it may be larger than the memory.
"""

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 2**20
_SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checksum:
    """What the bytes of a file should give."""

    algorithm: str
    """crc32, or a name of hashlib."""
    value: str
    """In hexadecimal."""
    part_bytes: int = 0
    """Where it is not 0, the checksum is that of the checksums of parts of this size."""

    def holds(self, path: Path) -> bool:
        """Whether the file at `path` has this checksum."""
        return self._compute(path) == self.value

    def _compute(self, path: Path) -> str:
        if self.algorithm == "crc32":
            return f"{crc32(path, offset=0, num_bytes=path.stat().st_size):08x}"
        with path.open("rb") as data:
            if not self.part_bytes:
                return hashlib.file_digest(data, self._new).hexdigest()
            parts = self._new()
            while data.tell() < path.stat().st_size:
                part = self._new()
                for chunk in _chunks(data, self.part_bytes):
                    part.update(chunk)
                parts.update(part.digest())
        return parts.hexdigest()

    def _new(self) -> "hashlib._Hash":
        # Against accidents, not against attackers: also where a system forbids md5 for security.
        return hashlib.new(self.algorithm, usedforsecurity=False)


def crc32(path: Path, *, offset: int, num_bytes: int) -> int:
    """The CRC32 of a part of a file; that of fewer bytes where the file ends before."""
    value = 0
    with path.open("rb") as data:
        data.seek(offset)
        for chunk in _chunks(data, num_bytes):
            value = zlib.crc32(chunk, value)
    return value


def read_sums(text: str) -> dict[str, Checksum]:
    """What sha256sum wrote: the checksum of each file, by its path. Raises ValueError naming the first bad line."""
    found = {}
    for line in text.splitlines():
        match = _SUM_LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{line[:80]!r} is no line of sha256sum")
        found[match[2]] = Checksum(algorithm="sha256", value=match[1].lower())
    return found


def _chunks(data: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    while num_bytes and (chunk := data.read(min(num_bytes, _CHUNK_BYTES))):
        num_bytes -= len(chunk)
        yield chunk
