"""Journal: which parts of a folder's files are on the disk, so that a fetch that was killed goes on where it was.

A file of lines beside the folder; a line is written after its part. What a line says is believed when the part's bytes
have the CRC32 that they had: a disk may have lost them with the power.
"""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

from engine.adapters.checksum import crc32


def journal_of(folder: Path) -> Path:
    """The file of this folder's journal."""
    return folder.with_name(f"{folder.name}.parts")


class Journal:
    """Parts by name, with their CRC32. Used by several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._known = dict(_lines(path)) if path.exists() else {}
        # Line by line: a kill loses at most the line under way.
        self._file = path.open("a", buffering=1)
        # The last line may be half of one.
        self._file.write("\n")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, name: str, path: Path, *, offset: int, num_bytes: int) -> bool:
        """Whether these bytes of the file at `path` are the part of that name."""
        value = self._known.get(name)
        return value is not None and value == crc32(path, offset=offset, num_bytes=num_bytes)

    def add(self, name: str, value: int) -> None:
        """The part of that name is there."""
        with self._lock:
            self._file.write(json.dumps([name, value]) + "\n")


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    for line in path.read_text(errors="replace").splitlines():
        try:
            name, value = json.loads(line)
        except ValueError:
            continue
        yield name, value
