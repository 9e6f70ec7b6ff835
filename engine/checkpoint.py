"""Checkpoint: where the step loop stood, in the store, so that the next run goes on there.

In: a Snapshot after a step. Out: one safetensors file per checkpoint below the job's own folder, the last two of them;
and from them the newest Snapshot that is of this very video. A checkpoint carries an identity: of another request,
other weights or another version of a library it is refused. Written by a thread of its own; a store that fails costs
repeated steps later, never the job.
"""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.adapters.store import Store
from engine.contract.errors import NotFound, Unavailable
from engine.contract.request import Request
from engine.denoise import Snapshot
from engine.models import lora

_log = logging.getLogger(__name__)

# The form of the file; another one is refused like another version of a library.
_FORMAT = 2
# The newest may be what a dying disk or process broke.
_KEPT = 2
# Libraries whose versions may change the numbers.
_LIBRARIES = ("torch", "diffusers", "transformers")


def identity(request: Request, folder: Path, *, image: str = "", weights_dtype: str = "model") -> str:
    """What a checkpoint must have in common with a run: the video that is asked for, the weights, the versions.

    `image` is the sha256 of what the request only names; `weights_dtype` that of the plan's speed.

    Not the number of ranks: any number goes on with the same numbers. Weights are told apart by their names and sizes
    and by the small files beside them; reading 57 GB to compare them would cost more than the steps.
    """
    loras = {one.name for one in request.input.loras}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_used(path.relative_to(folder), loras)]
    weights = [
        (path.relative_to(folder).as_posix(), path.stat().st_size, _digest(path) if path.suffix == ".json" else "")
        for path in files
    ]
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    dtypes = {"dtype": request.row.dtype, "weights_dtype": weights_dtype}
    video = {"model": request.model, **dtypes, "input": request.to_json()["input"], "image": image}
    # It says which steps are computed.
    calibration = repr(request.row.magnitudes) if request.input.cache == "magcache" else ""
    text = json.dumps([_FORMAT, video, weights, versions, calibration], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_used(path: Path, loras: Collection[str]) -> bool:
    """Whether a file of a model's folder is the model's, or of one of these LoRAs; others come and go beside it."""
    return path.parts[0] != lora.FOLDER or path.parts[1].removesuffix(".safetensors") in loras


class Checkpoints:
    """The checkpoints of one job; only the reporter has them."""

    def __init__(self, store: Store, folder: str, *, identity: str, interval_s: float) -> None:
        """`interval_s` between two of them; a step that takes longer is written down after every step."""
        self._store = store
        self._folder = folder
        self._identity = identity
        self._interval_s = interval_s
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._write: Future[None] | None = None
        self._written_at = time.monotonic()

    def newest(self) -> Snapshot | None:
        """Where to go on, or None to begin. What is refused is removed: it would pass for a newer one later."""
        try:
            for key in reversed(self._store.list(self._folder)):
                try:
                    return self._read(key)
                except (SafetensorError, ValueError, KeyError) as error:
                    _log.warning("checkpoint %s is refused: %s", key, error)
                    self._store.delete(key)
        except (Unavailable, NotFound) as error:
            _log.warning("no checkpoint is read, the run begins at the first step: %s", error)
        return None

    def offer(self, snapshot: Snapshot) -> None:
        """Write this one down, if it is time and the last one is written. Costs a step nothing: a thread does it."""
        is_writing = self._write is not None and not self._write.done()
        if is_writing or time.monotonic() - self._written_at < self._interval_s:
            return
        self._written_at = time.monotonic()
        self._write = self._writer.submit(self._put, snapshot)

    def write(self, snapshot: Snapshot) -> None:
        """Write this one down now; on return it is in the store, or the log says why not."""
        self._write = self._writer.submit(self._put, snapshot)
        self._write.result()

    def clear(self) -> None:
        """Remove all: the job needs them no more."""
        if self._write:
            self._write.result()
        try:
            for key in self._store.list(self._folder):
                self._store.delete(key)
        except Unavailable as error:
            _log.warning("checkpoints stay behind: %s", error)

    def close(self) -> None:
        """End the thread; what it writes now may still arrive."""
        self._writer.shutdown(wait=False, cancel_futures=True)

    def _put(self, snapshot: Snapshot) -> None:
        # Six digits: keys sort as steps do.
        key = f"{self._folder}/{snapshot.step:06}.safetensors"
        started = time.monotonic()
        try:
            with tempfile.NamedTemporaryFile(prefix="cinevent-", suffix=".safetensors") as file:
                _save(snapshot, Path(file.name), identity=self._identity)
                self._store.put(key, Path(file.name), content_type="application/octet-stream")
            for old in self._store.list(self._folder)[:-_KEPT]:
                self._store.delete(old)
        except (Unavailable, OSError) as error:
            _log.warning("no checkpoint after step %d: %s", snapshot.step, error)
        else:
            _log.info("checkpoint after step %d, in %.2f s", snapshot.step, time.monotonic() - started)

    def _read(self, key: str) -> Snapshot:
        with tempfile.NamedTemporaryFile(prefix="cinevent-", suffix=".safetensors") as file:
            file.write(self._store.read(key))
            file.flush()
            return _load(Path(file.name), identity=self._identity)


def _save(snapshot: Snapshot, path: Path, *, identity: str) -> None:
    tensors = {"latents": snapshot.latents_bcfhw}
    scheduler = {name: _pack(value, name, tensors) for name, value in snapshot.scheduler.items()}
    cache = {name: _pack(value, f"cache.{name}", tensors) for name, value in snapshot.cache.items()}
    head = {"identity": identity, "step": snapshot.step, "scheduler": scheduler, "cache": cache}
    # Clones: safetensors refuses two names for one memory.
    copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    save_file(copies, path, metadata={"cinevent": json.dumps(head)})


def _load(path: Path, *, identity: str) -> Snapshot:
    with safe_open(path, framework="pt") as file:
        head = json.loads((file.metadata() or {})["cinevent"])
        if head["identity"] != identity:
            raise ValueError("it is of another request, other weights or other versions")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    scheduler, cache = (
        {name: _unpack(value, tensors) for name, value in head[part].items()} for part in ("scheduler", "cache")
    )
    return Snapshot(step=head["step"], latents_bcfhw=tensors["latents"], scheduler=scheduler, cache=cache)


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON; tensors in it are put into `tensors` and named."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Sequence):
        return [_pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    return value


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[value["tensor"]]
    return [_unpack(item, tensors) for item in value] if isinstance(value, list) else value


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
