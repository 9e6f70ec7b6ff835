"""Worker: one job on one rank, from top to bottom.

In: the request and the ranks. Out: artifacts in the store, the manifest last, and the events of it.
All ranks walk the same way until the latents are finished (latents.py), and on if it takes all of them to decode; the
rest is the reporter's.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import torch

from engine import decode, image, load, speed, video
from engine.adapters import weights
from engine.adapters.store import Store
from engine.checkpoint import Checkpoints, identity
from engine.contract.artifact import Artifact, Manifest, encode
from engine.contract.errors import Invalid, JobFailed
from engine.contract.plan import Plan, check, choose
from engine.contract.request import Request
from engine.contract.settings import Settings
from engine.image import Picture
from engine.latents import Run, Stages, make_latents
from engine.mesh import Ranks, divide
from engine.pace import Work, pace_key
from engine.paces import Paces
from engine.preview import Previews
from engine.report import Reporter, Silence
from engine.stop import Stop, Stopped, Why
from engine.tiles import Tiles
from engine.voice import Voice

_log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "diffusers", "transformers")
_VIDEO, _POSTER = "video.mp4", "poster.jpg"


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
    paces: str
    """The folder in the store; all jobs of a tenant have the same."""


def work(request: Request, *, settings: Settings, ranks: Ranks, outlet: Outlet | None, stop: Stop) -> None:
    """Make the video of `request`, together with all ranks; the reporter alone has an outlet.

    Raises JobFailed, Stopped when it was told to end, and Unavailable when the log or the store do not answer.
    """
    try:
        with _memory_errors():
            _make(request, _plan(settings, request, ranks), settings=settings, ranks=ranks, outlet=outlet, stop=stop)
    except Stopped as stopped:
        if outlet and stopped.why is Why.DRAIN:
            outlet.voice.drained()
        raise


def _make(request: Request, plan: Plan, *, settings: Settings, ranks: Ranks, outlet: Outlet | None, stop: Stop) -> None:
    mesh = divide(ranks, plan)
    if outlet:
        outlet.voice.started(world_size=ranks.world_size)
    mesh = replace(mesh, plan=speed.ready(plan, request.row, ranks.device))
    # Before the weights: a bad picture is found in a second, they take minutes.
    picture = _picture(request, outlet) if outlet else None
    reporter = _reporter(request, ranks=ranks, outlet=outlet)
    stages = Stages(reporter)
    checkpoints = None
    try:
        # Told as progress as long as bytes arrive: a long fetch is no stall.
        folder = weights.ensure(request.row, settings, told=lambda *_: reporter.stage("loading"))
        checkpoints = _checkpoints(request, folder, plan=plan, picture=picture, settings=settings, outlet=outlet)
        run = Run(
            request=request,
            folder=folder,
            mesh=mesh,
            stages=stages,
            stop=stop,
            picture=picture,
            checkpoints=checkpoints,
        )
        latents, vae = make_latents(run)
        stages.enter("decoding")
        with tempfile.TemporaryDirectory(prefix="cinevent-") as name:
            work_folder = Path(name)
            tiles = _decode_together(vae, latents, run, settings=settings, folder=work_folder)
            # The other ranks are done: their devices are free for the next job while this one is encoded.
            ranks.close()
            if outlet:
                tile = _decode(vae, latents, run, tiles=tiles, folder=work_folder)
                manifest = _store(run, tile=tile, folder=work_folder, outlet=outlet)
                if checkpoints:
                    checkpoints.clear()
                reporter.close()
                outlet.voice.completed(manifest)
                reporter.remember()
    finally:
        reporter.close()
        if checkpoints:
            checkpoints.close()


def _reporter(request: Request, *, ranks: Ranks, outlet: Outlet | None) -> Reporter | Silence:
    if outlet is None:
        return Silence()
    work = Work.of(request, world_size=ranks.world_size)
    return Reporter(
        outlet.voice,
        work=work,
        paces=Paces(outlet.store, pace_key(outlet.paces, work)),
        previews=Previews(outlet.store, f"{outlet.artifacts}preview.jpg"),
        device=ranks.device,
    )


def _picture(request: Request, outlet: Outlet) -> Picture | None:
    given = request.input
    if given.image is None:
        return None
    return image.fetch(outlet.store, outlet.uploads + given.image, size=(given.width, given.height))


def _checkpoints(
    request: Request, folder: Path, *, plan: Plan, picture: Picture | None, settings: Settings, outlet: Outlet | None
) -> Checkpoints | None:
    if outlet is None or not settings.checkpoint_interval_s:
        return None
    sha256 = picture.upload.sha256 if picture else ""
    same = identity(request, folder, image=sha256, weights_dtype=plan.speed.weights_dtype)
    return Checkpoints(outlet.store, outlet.checkpoints, identity=same, interval_s=settings.checkpoint_interval_s)


def _decode_together(vae: Any, latents: torch.Tensor, run: Run, *, settings: Settings, folder: Path) -> Tiles | None:
    """Tiles from all ranks, if whole frames do not fit the reporter's device; else None, and nothing is done yet."""
    ranks = run.mesh.ranks
    memory = int(settings.decode_memory_gib * 2**30) or decode.memory_of(ranks.device)
    side = ranks.share(decode.first_side(vae, latents, memory_bytes=memory) if vae else 0)
    if not side:
        return None
    vae = vae or load.load_vae(run.folder)
    return decode.decode_in_tiles(vae, latents, side=side, ranks=ranks, folder=folder)


def _decode(vae: Any, latents: torch.Tensor, run: Run, *, tiles: Tiles | None, folder: Path) -> int:
    """Write the video and the poster into `folder`, encoding each frame as it is decoded; returns the tiles' side."""
    given = run.request.input

    def write(chunks: Iterator[np.ndarray]) -> None:
        mp4, poster = folder / _VIDEO, folder / _POSTER
        sizes = {"num_frames": given.num_frames, "fps": given.fps, "crf": given.crf}
        video.write_video(told(chunks), mp4, poster, **sizes)

    def told(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        done = 0
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            run.stages.reporter.part(done / given.num_frames)
        # All frames are decoded; what remains is the end of the file.
        run.stages.enter("encoding_video")

    return decode.film(vae, latents, write, tiles=tiles, folder=folder)


def _store(run: Run, *, tile: int, folder: Path, outlet: Outlet) -> bytes:
    """Put the video, the poster and then the manifest; returns the manifest's bytes."""

    def put(path: Path, content_type: str, facts: Mapping[str, int | float] | None = None) -> Artifact:
        key = outlet.artifacts + path.name
        outlet.store.put(key, path, content_type=content_type)
        return Artifact.of(path.read_bytes(), key=key, content_type=content_type, facts=facts)

    run.stages.enter("storing")
    artifacts = {
        "video": put(folder / _VIDEO, "video/mp4", video.probe(folder / _VIDEO)),
        "poster": put(folder / _POSTER, "image/jpeg"),
    }
    body = encode(_manifest(run, tile=tile, outlet=outlet, artifacts=artifacts))
    manifest = folder / "manifest.json"
    manifest.write_bytes(body)
    put(manifest, "application/json")
    return body


def _manifest(run: Run, *, tile: int, outlet: Outlet, artifacts: Mapping[str, Artifact]) -> Manifest:
    return Manifest(
        key=f"{outlet.artifacts}manifest.json",
        job=outlet.job,
        tenant=outlet.tenant,
        attempt=outlet.attempt,
        request=run.request.to_json(),
        seed=run.request.input.seed,
        plan=run.mesh.plan,
        tile=tile,
        versions={"python": python_version(), **{name: metadata.version(name) for name in _LIBRARIES}},
        timings=run.stages.end(),
        artifacts=artifacts,
        inputs={"image": run.picture.upload} if run.picture else {},
    )


def _plan(settings: Settings, request: Request, ranks: Ranks) -> Plan:
    """The launcher's plan; without one, that of this many processes on one node."""
    try:
        if not settings.plan:
            given = request.input
            return choose(
                request.row,
                num_nodes=1,
                num_processes=ranks.world_size,
                width=given.width,
                height=given.height,
                num_frames=given.num_frames,
                gpu_memory_gib=settings.gpu_memory_gib,
                has_negative=given.has_negative,
                speed=settings.speed,
            )
        plan = Plan.from_json(json.loads(settings.plan))
        check(plan, request.row)
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
