"""Where artifacts and uploads are: a directory, or an S3 bucket.

A key is `<tenant>/<job>/a<attempt>/<name>` or `<tenant>/uploads/<name>` (contract/job.py). `put` is
atomic: a reader sees a whole artifact or none. Foreign errors leave as NotFound or Unavailable.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from engine.adapters.s3 import connect, list_objects, split_url, translated
from engine.contract.errors import NotFound, Unavailable
from engine.contract.settings import Settings

_RETRY_AFTER_S = 5.0
# Of a put that is under way; no artifact has such a name.
_UNFINISHED = ".put-"

# Within a class that has a method `list`, that word is the method.
Keys = list[str]


class Store(Protocol):
    """Keyed files; the promises are in tests/contract/test_store.py."""

    def ping(self) -> None:
        """Raise Unavailable unless artifacts can be written."""

    def put(self, key: str, path: Path, *, content_type: str) -> None:
        """Store the file at `path` under `key`, whole or not at all; an artifact of that key is replaced."""

    def read(self, key: str) -> bytes:
        """The artifact's bytes. Raises NotFound."""

    def open(self, key: str) -> BinaryIO:
        """The artifact as a seekable file, to be closed by the caller. Raises NotFound."""

    def exists(self, key: str) -> bool:
        """Whether there is such an artifact, without reading it."""

    def link(self, key: str, *, expires_s: int) -> str | None:
        """An address at which anybody may read the artifact for `expires_s`; None if this store has no addresses."""

    def list(self, prefix: str) -> Keys:
        """The keys below the folder `prefix`, sorted; `default/j1` has none of `default/j10`. Maybe none."""

    def delete(self, key: str) -> None:
        """Remove the artifact; no error if there is none."""


def open_store(settings: Settings) -> Store:
    """The store that `store_url` names."""
    scheme, _, place = settings.store_url.partition(":")
    if scheme == "s3":
        bucket, prefix = split_url(settings.store_url)
        return S3Store(bucket, prefix=prefix, endpoint=settings.s3_endpoint)
    return DirStore(Path(place))


class DirStore:
    """A store in a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def ping(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"the store's directory cannot be made: {error}", retry_after_s=_RETRY_AFTER_S) from error
        if not os.access(self._root, os.W_OK):
            raise Unavailable(f"the store's directory {self._root} cannot be written", retry_after_s=_RETRY_AFTER_S)

    def put(self, key: str, path: Path, *, content_type: str) -> None:  # noqa: ARG002  (a directory keeps no types)
        target = self._path(key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _temporary(target.parent) as copy, path.open("rb") as data:
                shutil.copyfileobj(data, copy)
                copy.flush()
                # A link to an artifact is sent as soon as put returns; it must survive a power loss.
                os.fsync(copy.fileno())
                os.chmod(copy.name, 0o644)
                os.replace(copy.name, target)
            sync_folder(target.parent)
        except OSError as error:
            raise Unavailable(f"cannot store {key}: {error}", retry_after_s=_RETRY_AFTER_S) from error

    def read(self, key: str) -> bytes:
        with self.open(key) as data:
            return data.read()

    def open(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise NotFound(f"there is no artifact {key}") from error
        except OSError as error:
            raise Unavailable(f"cannot read {key}: {error}", retry_after_s=_RETRY_AFTER_S) from error

    def exists(self, key: str) -> bool:
        try:
            self.open(key).close()
        except NotFound:
            return False
        return True

    def link(self, key: str, *, expires_s: int) -> str | None:  # noqa: ARG002  (a directory has no addresses)
        return None

    def list(self, prefix: str) -> Keys:
        folder = self._path(prefix)
        try:
            found = [path for path in _files(folder) if not path.name.startswith(_UNFINISHED)]
        except NotADirectoryError as error:
            if not self._root.is_dir():
                raise Unavailable(f"cannot list {prefix}: {error}", retry_after_s=_RETRY_AFTER_S) from error
            # The prefix is an artifact: in a bucket too there is nothing below it.
            return []
        except OSError as error:
            raise Unavailable(f"cannot list {prefix}: {error}", retry_after_s=_RETRY_AFTER_S) from error
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except IsADirectoryError:
            return
        except OSError as error:
            raise Unavailable(f"cannot delete {key}: {error}", retry_after_s=_RETRY_AFTER_S) from error

    def _path(self, key: str) -> Path:
        path = (self._root / _checked(key)).resolve()
        if not path.is_relative_to(self._root):
            raise NotFound(f"there is no artifact {key}")
        return path


def _files(folder: Path) -> Iterator[Path]:
    """Files below `folder`, no links; a folder that is gone has none."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for at, _, names in os.walk(folder, onerror=fail):
        yield from (path for name in names if not (path := Path(at, name)).is_symlink())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power loss, as fsync does for a file's bytes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _temporary(folder: Path) -> Iterator[Any]:
    """A new file in `folder` that is gone afterwards, unless it was given another name."""
    copy = tempfile.NamedTemporaryFile(dir=folder, prefix=_UNFINISHED, delete=False)  # noqa: SIM115  (closed below)
    try:
        with copy:
            yield copy
    finally:
        Path(copy.name).unlink(missing_ok=True)


class S3Store:
    """A store in an S3 bucket, under a prefix; credentials as boto3 finds them."""

    def __init__(self, bucket: str, *, prefix: str, endpoint: str) -> None:
        self._client = connect(endpoint)
        self._bucket = bucket
        self._prefix = prefix

    def ping(self) -> None:
        try:
            with translated(f"bucket {self._bucket}"):
                self._client.head_bucket(Bucket=self._bucket)
        except NotFound as error:
            raise Unavailable(f"there is no bucket {self._bucket}", retry_after_s=_RETRY_AFTER_S) from error

    def put(self, key: str, path: Path, *, content_type: str) -> None:
        with translated(f"artifact {key}"):
            self._client.upload_file(str(path), self._bucket, self._name(key), ExtraArgs={"ContentType": content_type})

    def read(self, key: str) -> bytes:
        with self.open(key) as data:
            return data.read()

    def open(self, key: str) -> BinaryIO:
        # A video of a few seconds is a few megabytes: spooled, beyond that on disk.
        data = tempfile.SpooledTemporaryFile(max_size=8 * 2**20)  # noqa: SIM115  (the caller closes it)
        with ExitStack() as on_error:
            on_error.enter_context(data)
            with translated(f"artifact {key}"):
                self._client.download_fileobj(self._bucket, self._name(key), data)
            data.seek(0)
            on_error.pop_all()
        return data  # type: ignore[return-value]  # typeshed: SpooledTemporaryFile is no BinaryIO, though it has all of it

    def exists(self, key: str) -> bool:
        try:
            with translated(f"artifact {key}"):
                self._client.head_object(Bucket=self._bucket, Key=self._name(key))
        except NotFound:
            return False
        return True

    def link(self, key: str, *, expires_s: int) -> str | None:
        params = {"Bucket": self._bucket, "Key": self._name(key)}
        with translated(f"artifact {key}"):
            return str(self._client.generate_presigned_url("get_object", Params=params, ExpiresIn=expires_s))

    def list(self, prefix: str) -> Keys:
        start = len(self._prefix) + 1 if self._prefix else 0
        found = list_objects(self._client, self._bucket, f"{self._name(prefix)}/")
        return sorted(item.key[start:] for item in found)

    def delete(self, key: str) -> None:
        with translated(f"artifact {key}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._name(key))

    def _name(self, key: str) -> str:
        return f"{self._prefix}/{_checked(key)}" if self._prefix else _checked(key)


def _checked(key: str) -> str:
    # A bucket has no folders, but services and proxies between may read ".." as one.
    if not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise NotFound(f"there is no artifact {key}")
    return key
