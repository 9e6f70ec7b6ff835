"""Weights: the folder of a model row, complete, wherever it comes from.

In: a row, the settings. Out: a folder in `models_dir`, which pods of a node may share. What is not there is fetched
from where `models_url` says: an S3 prefix or the Hugging Face hub. A folder gets its name when everything in it is
checked and on the disk; so one that has its name is complete. Errors name the file.
"""

import logging
import time
from pathlib import Path

from engine.adapters.fetch import Limits, fetch, writing
from engine.adapters.hub import Repo, fetch_from_hub
from engine.adapters.journal import journal_of
from engine.adapters.s3 import Bucket, split_url
from engine.adapters.store import sync_folder
from engine.adapters.turn import Told, Turn, take
from engine.contract.errors import JobFailed
from engine.contract.models import ModelRow
from engine.contract.settings import Settings

_log = logging.getLogger(__name__)

# Every diffusers folder has it.
_INDEX = "model_index.json"
_LIMITS = Limits()
# Of silence. A healthy fetch is silent longest when a slow disk (200 MB/s) reads a model (118 GB) for its checksums.
_PATIENCE_S = 900.0


def ensure(
    row: ModelRow,
    settings: Settings,
    *,
    told: Told | None = None,
    limits: Limits = _LIMITS,
    patience_s: float = _PATIENCE_S,
) -> Path:
    """The complete folder of `row`. If it is not there, one process of all that want it fetches it; the others wait.

    `told` hears now and then how many bytes of how many are there, as long as that number grows.
    Raises JobFailed("model_load_failed") naming the file that is missing or wrong, Unavailable for what may heal.
    """
    folder = Path(settings.models_dir).absolute() / row.name
    if _is_complete(folder):
        return folder
    if not settings.models_url:
        raise _failed(f"{folder} is missing; put the model there, or set CINEVENT_MODELS_URL")
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{row.name}.lock")
        with take(lock, what=row.name, patience_s=patience_s, told=told) as turn:
            # Whoever had the lock before has fetched it, or has died.
            if not _is_complete(folder):
                _fetch(row, settings, folder, limits=limits, patience_s=patience_s, turn=turn)
    return folder


def _is_complete(folder: Path) -> bool:
    if (folder / _INDEX).is_file():
        return True
    if folder.is_dir() and any(folder.iterdir()):
        raise _failed(f"{folder / _INDEX} is missing; complete the folder, or remove it so that it is fetched")
    return False


def _fetch(row: ModelRow, settings: Settings, folder: Path, *, limits: Limits, patience_s: float, turn: Turn) -> None:
    partial = folder.with_name(f".{row.name}.partial")
    started = time.monotonic()
    source, _, revision = settings.models_url.partition("@")
    if source == "hub":
        if not row.hub:
            raise _failed(f"{row.name} is on no hub: put it into {folder}, or into S3 (CINEVENT_MODELS_URL)")
        repo = Repo(name=row.hub, revision=revision or "main")
        fetch_from_hub(repo, partial, reserve_bytes=limits.reserve_bytes, patience_s=patience_s, turn=turn)
    else:
        name, prefix = split_url(settings.models_url)
        bucket = Bucket(name, endpoint=settings.s3_endpoint, num_connections=limits.num_connections)
        fetch(bucket, f"{prefix}/{row.name}/".lstrip("/"), into=partial, limits=limits, told=turn.tell)
    if not (partial / _INDEX).is_file():
        raise _failed(f"{settings.models_url} has no {_INDEX} for {row.name}: that is no diffusers folder")
    _publish(partial, folder)
    _log.info("%s was fetched in %.0f s", folder, time.monotonic() - started)


def _publish(partial: Path, folder: Path) -> None:
    """From one moment to the next the folder is there, also after a power loss: its files are on the disk already."""
    for path in (partial, *partial.rglob("*")):
        if path.is_dir():
            sync_folder(path)
    partial.rename(folder)
    sync_folder(folder.parent)
    journal_of(partial).unlink(missing_ok=True)


def _failed(message: str) -> JobFailed:
    return JobFailed("model_load_failed", message, retryable=False)
