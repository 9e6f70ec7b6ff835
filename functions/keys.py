"""API keys: a file of ids and hashes, written by `cinevent keys`, read by submit and read again when it changes.

A key is `cvk_<id>_<secret>`. The file has the secret's SHA-256 only: 32 random bytes need no slow hash.
"""

import base64
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.contract.errors import CineventError, Invalid, NotFound, Problem
from engine.contract.job import is_tenant
from engine.contract.rules import read_timestamp

SCOPES = ("read", "write", "admin")
"""What a key may do: look at jobs, change them, all of it."""

_LOG = logging.getLogger(__name__)
_PREFIX = "cvk_"
_ID = re.compile(r"[a-z2-7]{12}")
# A revoked key works for this long at most.
_LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key without its secret; times are RFC 3339."""

    id: str
    tenant: str
    sha256: str
    scopes: tuple[str, ...]
    created_at: str
    expires_at: str | None = None
    note: str = ""

    def is_in_force(self, now: datetime) -> bool:
        """Whether it has not expired."""
        return self.expires_at is None or now < read_timestamp(self.expires_at)


def new_key(*, tenant: str, scopes: Iterable[str], expires_at: datetime | None, note: str) -> tuple[Key, str]:
    """A key, and the text that its holder sends; the latter cannot be had again."""
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    name = base64.b32encode(secrets.token_bytes(8)).decode().lower()[:12]
    key = Key(
        id=name,
        tenant=tenant,
        sha256=hashlib.sha256(secret.encode()).hexdigest(),
        scopes=tuple(scopes),
        created_at=_text(datetime.now(UTC)),
        expires_at=None if expires_at is None else _text(expires_at),
        note=note,
    )
    return _checked(asdict(key), where=f"key {name}"), f"{_PREFIX}{name}_{secret}"


def read_keys(path: Path) -> dict[str, Key]:
    """The keys in a file, by id. Raises Invalid, which names the bad one."""
    try:
        found = json.loads(path.read_bytes())
        keys = [_checked(item, where=f"{path}: keys[{index}]") for index, item in enumerate(found["keys"])]
    except OSError as error:
        raise _bad(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        message = f'{path} is no file of keys: allowed is {{"keys": [...]}}, as `cinevent keys new` writes it'
        raise _bad(message) from error
    return {key.id: key for key in keys}


def add_key(path: Path, key: Key) -> None:
    """Write one more key into the file, which is made if there is none. Raises Invalid, CineventError."""
    _change(path, lambda keys: {**keys, key.id: key})


def revoke_key(path: Path, name: str) -> None:
    """Take a key out of the file. Raises NotFound, Invalid, CineventError."""

    def without(keys: dict[str, Key]) -> dict[str, Key]:
        if name not in keys:
            raise NotFound(f"there is no key {name} in {path}")
        return {other: key for other, key in keys.items() if other != name}

    _change(path, without)


class KeyFile:
    """The keys of a file as it is now: a look each second at most. One that became bad leaves them as they were."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _version(path)
        self._keys = read_keys(path)
        self._looked_at = time.monotonic()

    def find(self, text: str) -> Key | None:
        """The key that this text is; None for any other text, and after the key expired."""
        name, _, secret = text.removeprefix(_PREFIX).partition("_")
        key = self._current().get(name)
        digest = hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
        # The comparison comes first: its time says nothing about which keys there are.
        is_right = hmac.compare_digest(digest, key.sha256 if key else "")
        return key if key and is_right and key.is_in_force(datetime.now(UTC)) else None

    def _current(self) -> Mapping[str, Key]:
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._looked_at = time.monotonic()
            seen = _version(self._path)
            if seen != self._seen:
                try:
                    self._keys = read_keys(self._path)
                except Invalid as error:
                    _LOG.error("the keys stay as they were: %s", error)
                self._seen = seen
        return self._keys


def is_key(text: str) -> bool:
    """Whether a credential has the form of a key."""
    return text.startswith(_PREFIX)


def _version(path: Path) -> tuple[int, ...]:
    """Differs when the file does. A Secret is mounted as a link: what it leads to is what counts."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _change(path: Path, change: Callable[[dict[str, Key]], dict[str, Key]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            # Two writers at once: the second waits.
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = change(read_keys(path) if path.exists() else {})
            _write(path, keys.values())
    except OSError as error:
        raise CineventError(f"{path} cannot be written: {error.strerror}") from error


def _write(path: Path, keys: Iterable[Key]) -> None:
    """Whole or not at all, for the owner alone."""
    text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n"
    # mkstemp: readable by its owner only.
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _checked(data: Any, *, where: str) -> Key:
    key = Key(**{**data, "scopes": tuple(data["scopes"])})
    if not (isinstance(key.id, str) and _ID.fullmatch(key.id)):
        raise _bad(f"{where}: id is {key.id!r}; allowed: 12 of a-z and 2-7")
    if not (isinstance(key.tenant, str) and is_tenant(key.tenant)):
        raise _bad(f"{where}: {key.tenant!r} cannot name a tenant; allowed: 1 to 32 of a-z, 0-9 and -")
    if not key.scopes or not set(key.scopes) <= set(SCOPES):
        raise _bad(f"{where}: scopes are {', '.join(map(str, key.scopes)) or 'none'}; allowed: {', '.join(SCOPES)}")
    if not re.fullmatch(r"[0-9a-f]{64}", str(key.sha256)):
        raise _bad(f"{where}: sha256 is not the hash of a secret")
    try:
        key.is_in_force(datetime.now(UTC))
    except (ValueError, TypeError) as error:
        raise _bad(f"{where}: expires_at is {key.expires_at!r}; allowed: RFC 3339, or null") from error
    return key


def _bad(message: str) -> Invalid:
    return Invalid(Problem(pointer="CINEVENT_KEYS_FILE", rule="keys", message=message))


def _text(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
