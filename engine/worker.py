"""Worker: one job on one rank, from top to bottom.

In: the request and the ranks. Out: artifacts in the store, the manifest last, and the events of it.
All ranks walk the same way until the latents are finished (latents.py); the rest is the reporter's.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import torch

from engine import decode, image, video
from engine.adapters.store import Store
from engine.checkpoint import Checkpoints, identity
from engine.contract.artifact import Artifact, Manifest, encode
from engine.contract.errors import Invalid, JobFailed
from engine.contract.models import ModelRow
from engine.contract.plan import Plan, check, choose
from engine.contract.request import Request
from engine.contract.settings import Settings
from engine.image import Picture
from engine.latents import Run, Stages, make_latents
from engine.mesh import Ranks, divide
from engine.report import Reporter, Silence, Voice
from engine.stop import Stop, Stopped, Why

_log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlet:
    """What the reporter has and no other rank: where its words and its files go."""

    voice: Voice
    store: Store
    tenant: str
    job: str
    attempt: int
    artifacts: str
    """The folder in the store, with its slash; empty for the store itself."""
    uploads: str
    """The folder in the store where an image of the request is, with its slash; empty for the store itself."""
    checkpoints: str
    """The folder in the store."""


def work(request: Request, *, settings: Settings, ranks: Ranks, outlet: Outlet | None, stop: Stop) -> None:
    """Make the video of `request`, together with all ranks; the reporter alone has an outlet.

    Raises JobFailed, Stopped when it was told to end, and Unavailable when the log or the store do not answer.
    """
    try:
        with _memory_errors():
            _make(
                request, _plan(settings, request.row, ranks), settings=settings, ranks=ranks, outlet=outlet, stop=stop
            )
    except Stopped as stopped:
        if outlet and stopped.why is Why.DRAIN:
            outlet.voice.drained()
        raise


def _make(request: Request, plan: Plan, *, settings: Settings, ranks: Ranks, outlet: Outlet | None, stop: Stop) -> None:
    mesh = divide(ranks, plan)
    if outlet:
        outlet.voice.started(world_size=ranks.world_size)
    # Before the weights: a bad picture is found in a second, they take minutes.
    picture = _picture(request, outlet) if outlet else None
    reporter = Reporter(outlet.voice, steps=request.input.steps) if outlet else Silence()
    stages = Stages(reporter)
    folder = Path(settings.models_dir) / request.row.name
    checkpoints = _checkpoints(request, folder, picture=picture, settings=settings, outlet=outlet)
    run = Run(
        request=request,
        folder=folder,
        mesh=mesh,
        stages=stages,
        stop=stop,
        picture=picture,
        checkpoints=checkpoints,
    )
    try:
        latents, vae = make_latents(run)
        # The other ranks are done: their devices are free for the next job while this one is decoded.
        ranks.close()
        if outlet:
            frames = _decode(vae, latents, stages=stages)
            inputs = {"image": picture.upload} if picture else {}
            manifest = _store(frames, request, plan, inputs=inputs, outlet=outlet, stages=stages)
            if checkpoints:
                checkpoints.clear()
            reporter.close()
            outlet.voice.completed(manifest)
    finally:
        reporter.close()
        if checkpoints:
            checkpoints.close()


def _picture(request: Request, outlet: Outlet) -> Picture | None:
    given = request.input
    if given.image is None:
        return None
    return image.fetch(outlet.store, outlet.uploads + given.image, size=(given.width, given.height))


def _checkpoints(
    request: Request, folder: Path, *, picture: Picture | None, settings: Settings, outlet: Outlet | None
) -> Checkpoints | None:
    if outlet is None or not settings.checkpoint_interval_s:
        return None
    same = identity(request, folder, image=picture.upload.sha256 if picture else "")
    return Checkpoints(outlet.store, outlet.checkpoints, identity=same, interval_s=settings.checkpoint_interval_s)


def _decode(vae: Any, latents: torch.Tensor, *, stages: Stages) -> np.ndarray:
    stages.enter("decoding")
    return decode.decode(vae, latents)


def _store(
    frames: np.ndarray,
    request: Request,
    plan: Plan,
    *,
    inputs: Mapping[str, Artifact],
    outlet: Outlet,
    stages: Stages,
) -> bytes:
    """Put the video, the poster and then the manifest; returns the manifest's bytes."""

    def put(path: Path, content_type: str, facts: Mapping[str, int | float] | None = None) -> Artifact:
        key = outlet.artifacts + path.name
        outlet.store.put(key, path, content_type=content_type)
        return Artifact.of(path.read_bytes(), key=key, content_type=content_type, facts=facts)

    with tempfile.TemporaryDirectory(prefix="cinevent-") as folder:
        stages.enter("encoding_video")
        mp4, poster, manifest = (Path(folder) / name for name in ("video.mp4", "poster.jpg", "manifest.json"))
        video.write_mp4(frames, mp4, fps=request.input.fps)
        video.write_poster(frames, poster)
        stages.enter("storing")
        artifacts = {
            "video": put(mp4, "video/mp4", video.probe(mp4)),
            "poster": put(poster, "image/jpeg"),
        }
        timings = stages.end()
        body = encode(_manifest(request, plan, outlet=outlet, timings=timings, artifacts=artifacts, inputs=inputs))
        manifest.write_bytes(body)
        put(manifest, "application/json")
    return body


def _manifest(
    request: Request,
    plan: Plan,
    *,
    outlet: Outlet,
    timings: Mapping[str, float],
    artifacts: Mapping[str, Artifact],
    inputs: Mapping[str, Artifact],
) -> Manifest:
    return Manifest(
        key=f"{outlet.artifacts}manifest.json",
        job=outlet.job,
        tenant=outlet.tenant,
        attempt=outlet.attempt,
        request=request.to_json(),
        seed=request.input.seed,
        plan=plan,
        versions={"python": python_version(), **{name: metadata.version(name) for name in _LIBRARIES}},
        timings=timings,
        artifacts=artifacts,
        inputs=inputs,
    )


def _plan(settings: Settings, row: ModelRow, ranks: Ranks) -> Plan:
    """The launcher's plan; without one, that of this many processes on one node."""
    try:
        if not settings.plan:
            return choose(row, num_nodes=1, num_processes=ranks.world_size)
        plan = Plan.from_json(json.loads(settings.plan))
        check(plan, row)
        return plan
    except (ValueError, TypeError) as error:
        raise JobFailed("plan_invalid", f"CINEVENT_PLAN is no plan: {error}", retryable=False) from error
    except Invalid as error:
        raise JobFailed("plan_invalid", str(error), retryable=False) from error


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        # Another job may have been on the same device.
        raise JobFailed("out_of_memory", str(error).partition("\n")[0], retryable=True) from error
