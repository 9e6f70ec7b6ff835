"""Hub: a repository of the Hugging Face hub becomes a folder, in a process of its own.

The engine keeps huggingface_hub offline, which that library settles when it is imported; only the process started here
is online. It downloads with the library's own parts and retries, and then compares every file with what the hub says
of it: the library goes on with what is in a folder when the hub does not answer.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.adapters.checksum import Checksum
from engine.adapters.fetch import make_room, remove_others
from engine.adapters.turn import Turn
from engine.contract.errors import JobFailed, Unavailable

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

_POLL_S = 1.0
_RETRY_AFTER_S = 30.0
# Of one request that has no body to speak of.
_TIMEOUT_S = 20.0
# The child's exit status when no other try would help.
_PERMANENT = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Repo:
    """A repository of models; `revision` is a branch, a tag or a commit."""

    name: str
    revision: str


def fetch_from_hub(repo: Repo, into: Path, *, reserve_bytes: int, patience_s: float, turn: Turn) -> None:
    """Make the folder `into` hold the files of `repo`, checked; what is there already is kept.

    Raises JobFailed when the repository or a file of it is missing or wrong, Unavailable for what may heal.
    """
    command = [sys.executable, "-m", "engine.adapters.hub", repo.name, repo.revision, str(into), str(reserve_bytes)]
    # With the lock in its hands: if this process is killed, nobody else begins before that one has ended.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[turn.handle]) as child:
        try:
            status = _watch(child, into, patience_s=patience_s, turn=turn)
        except BaseException:
            child.kill()
            raise
        assert child.stdout is not None
        said = child.stdout.read().strip() or f"the downloading process ended with status {status}"
    message = f"{repo.name} at {repo.revision} cannot be fetched from the hub (CINEVENT_MODELS_URL): {said}"
    if status == _PERMANENT:
        raise JobFailed("model_load_failed", message, retryable=False)
    if status:
        raise Unavailable(message, retry_after_s=_RETRY_AFTER_S)


def _watch(child: "subprocess.Popen[str]", into: Path, *, patience_s: float, turn: Turn) -> int:
    seen, since = 0, time.monotonic()
    while (status := child.poll()) is None:
        done = _num_bytes(into)
        if done > seen:
            seen, since = done, time.monotonic()
            turn.tell(done, 0)
        if time.monotonic() - since > patience_s:
            raise Unavailable(f"{into} did not grow for {patience_s:g} s", retry_after_s=_RETRY_AFTER_S)
        time.sleep(_POLL_S)
    return status


def _num_bytes(folder: Path) -> int:
    """On the disk; a file or folder that is gone a moment later has none."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(at, name).stat().st_blocks * 512
    return total


def main(arguments: list[str]) -> int:
    """The child: REPO REVISION FOLDER RESERVE_BYTES; says on standard output, in one line, what went wrong."""
    name, revision, folder, reserve_bytes = arguments
    os.environ["HF_HUB_OFFLINE"] = "0"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import errors

    try:
        _download(Repo(name=name, revision=revision), Path(folder), reserve_bytes=int(reserve_bytes))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        return _say(error, status=_PERMANENT)
    except JobFailed as error:
        return _say(error.message, status=_PERMANENT)
    except Exception as error:
        return _say(error, status=1)
    return 0


def _download(repo: Repo, into: Path, *, reserve_bytes: int) -> None:
    from huggingface_hub import HfApi, RepoFile, snapshot_download

    api = HfApi()
    # The commit, so that all files are of one version, whatever is uploaded meanwhile.
    commit = api.repo_info(repo.name, revision=repo.revision, timeout=_TIMEOUT_S).sha
    tree = api.list_repo_tree(repo.name, recursive=True, revision=commit)
    files = [item for item in tree if isinstance(item, RepoFile)]
    into.mkdir(parents=True, exist_ok=True)
    make_room(into, sum(item.size for item in files), reserve_bytes=reserve_bytes)
    snapshot_download(repo.name, revision=commit, local_dir=into)
    if damaged := _damaged(into, files):
        for path in damaged:
            path.unlink(missing_ok=True)
        snapshot_download(repo.name, revision=commit, local_dir=into)
        if damaged := _damaged(into, files):
            name = damaged[0].relative_to(into)
            raise JobFailed("model_load_failed", f"{name} is not what the hub says that it is", retryable=False)
    # The library's notes about the download.
    shutil.rmtree(into / ".cache", ignore_errors=True)
    remove_others(into, {item.path for item in files})


def _damaged(folder: Path, files: "list[RepoFile]") -> list[Path]:
    """The files that are missing or wrong; the others are on the disk, safe from a power loss."""
    with ThreadPoolExecutor() as pool:
        right = list(pool.map(lambda item: _is_right(folder / item.path, item), files))
    return [folder / item.path for item, is_right in zip(files, right, strict=True) if not is_right]


def _is_right(path: Path, item: "RepoFile") -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if item.lfs:
        return Checksum(algorithm="sha256", value=item.lfs.sha256).holds(path)
    # Small files are git's own: it names them by this.
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == item.blob_id


def _say(what: object, *, status: int) -> int:
    # Errors of the library have several lines, the first of which seldom says it.
    sys.stdout.write(" ".join(str(what).split())[:400] + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
