"""Worker: one job on one rank, from top to bottom.

In: the request and the ranks. Out: artifacts in the store, the manifest last, and the events of it.
All ranks walk the same way until the latents are finished, and on if it takes all of them to decode; the rest is the
reporter's.
"""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import torch

from engine import decode, denoise, load, text, video
from engine.adapters.store import Store
from engine.contract.artifact import Artifact, Manifest, encode
from engine.contract.errors import Invalid, JobFailed
from engine.contract.job import artifact_key
from engine.contract.models import ModelRow
from engine.contract.plan import Plan, check, choose
from engine.contract.request import Input, Request
from engine.contract.settings import Settings
from engine.mesh import Mesh, Ranks, divide
from engine.report import Reporter, Silence, Voice
from engine.tiles import Tiles

_log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "diffusers", "transformers")
_VIDEO, _POSTER = "video.mp4", "poster.jpg"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlet:
    """What the reporter has and no other rank: where its words and its artifacts go."""

    voice: Voice
    store: Store


def work(request: Request, *, settings: Settings, ranks: Ranks, outlet: Outlet | None) -> None:
    """Make the video of `request`, together with all ranks; the reporter alone has an outlet.

    Raises JobFailed, and Unavailable when the log or the store do not answer.
    """
    with _memory_errors():
        _make(request, _plan(settings, request.row, ranks), settings=settings, ranks=ranks, outlet=outlet)


def _make(request: Request, plan: Plan, *, settings: Settings, ranks: Ranks, outlet: Outlet | None) -> None:
    given = request.input
    num_tokens = request.row.num_tokens(width=given.width, height=given.height, num_frames=given.num_frames)
    mesh = divide(ranks, plan, num_tokens=num_tokens)
    if outlet:
        outlet.voice.started(world_size=ranks.world_size)
    reporter = Reporter(outlet.voice, steps=given.steps) if outlet else Silence()
    stages = Stages(reporter)
    try:
        latents, vae = make_latents(request, Path(settings.models_dir), mesh=mesh, stages=stages)
        stages.enter("decoding")
        with tempfile.TemporaryDirectory(prefix="cinevent-") as name:
            folder = Path(name)
            tiles = _decode_together(vae, latents, request.row, settings=settings, ranks=ranks, folder=folder)
            # The other ranks are done: their devices are free for the next job while this one is encoded.
            ranks.close()
            if outlet:
                tile = _decode(vae, latents, request.input, tiles=tiles, folder=folder, stages=stages)
                manifest = _store(request, plan, tile=tile, folder=folder, outlet=outlet, stages=stages)
                reporter.close()
                outlet.voice.completed(manifest)
    finally:
        reporter.close()


def make_latents(request: Request, models_dir: Path, *, mesh: Mesh, stages: "Stages") -> tuple[torch.Tensor, Any]:
    """Finished latents, and on the reporter the autoencoder to decode them with. The experts are freed on return."""
    row, given, ranks = request.row, request.input, mesh.ranks
    stages.enter("loading")
    parts = load.load_text_parts(row, models_dir, ranks=ranks)
    vae = load.load_vae(row, models_dir, ranks=ranks)
    model = load.load_denoiser(row, models_dir, flow_shift=given.flow_shift, mesh=mesh)
    stages.enter("encoding_text")
    # As in diffusers, the first scale alone decides whether there is a negative pass.
    prompts = [given.prompt, given.negative_prompt] if given.guidance_scale > 1 else [given.prompt]
    prompt, *negative = text.encode(parts, prompts, ranks=ranks)
    # The largest thing on the reporter's device after the experts, and of no more use.
    del parts
    stages.enter("denoising")
    embeddings = denoise.Embeddings(prompt_bld=prompt, negative_bld=negative[0] if negative else None)
    size = {"width": given.width, "height": given.height, "num_frames": given.num_frames}
    latents = denoise.make_noise(row, **size, seed=given.seed, device=ranks.device)
    second = given.guidance_scale if given.guidance_scale_2 is None else given.guidance_scale_2
    scales = (given.guidance_scale, second)
    for step in denoise.denoise(model, embeddings, latents, steps=given.steps, scales=scales, mesh=mesh):
        latents = step.latents_bcfhw
        stages.reporter.step(step.step, seconds=step.seconds)
    return latents, vae


def _decode_together(
    vae: Any, latents: torch.Tensor, row: ModelRow, *, settings: Settings, ranks: Ranks, folder: Path
) -> Tiles | None:
    """Tiles from all ranks, if whole frames do not fit the reporter's device; else None, and nothing is done yet."""
    memory = int(settings.decode_memory_gib * 2**30) or decode.memory_of(ranks.device)
    side = ranks.share(decode.first_side(vae, latents, memory_bytes=memory) if vae else 0)
    if not side:
        return None
    vae = vae or load.load_vae(row, Path(settings.models_dir), ranks=ranks, everywhere=True)
    return decode.decode_in_tiles(vae, latents, side=side, ranks=ranks, folder=folder)


def _decode(
    vae: Any, latents: torch.Tensor, given: Input, *, tiles: Tiles | None, folder: Path, stages: "Stages"
) -> int:
    """Write the video and the poster into `folder`, encoding each frame as it is decoded; returns the tiles' side."""

    def write(chunks: Iterator[np.ndarray]) -> None:
        mp4, poster = folder / _VIDEO, folder / _POSTER
        sizes = {"num_frames": given.num_frames, "fps": given.fps, "crf": given.crf}
        video.write_video(ending(chunks), mp4, poster, **sizes)

    def ending(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        yield from chunks
        # All frames are decoded; what remains is the end of the file.
        stages.enter("encoding_video")

    return decode.film(vae, latents, write, tiles=tiles, folder=folder)


def _store(request: Request, plan: Plan, *, tile: int, folder: Path, outlet: Outlet, stages: "Stages") -> bytes:
    """Put the video, the poster and then the manifest; returns the manifest's bytes."""
    voice = outlet.voice

    def put(path: Path, content_type: str, facts: Mapping[str, int | float] | None = None) -> Artifact:
        key = artifact_key(voice.tenant, voice.job, voice.attempt, path.name)
        outlet.store.put(key, path, content_type=content_type)
        return Artifact.of(path.read_bytes(), key=key, content_type=content_type, facts=facts)

    stages.enter("storing")
    artifacts = {
        "video": put(folder / _VIDEO, "video/mp4", video.probe(folder / _VIDEO)),
        "poster": put(folder / _POSTER, "image/jpeg"),
    }
    body = encode(_manifest(request, plan, tile=tile, voice=voice, timings=stages.end(), artifacts=artifacts))
    manifest = folder / "manifest.json"
    manifest.write_bytes(body)
    put(manifest, "application/json")
    return body


def _manifest(
    request: Request,
    plan: Plan,
    *,
    tile: int,
    voice: Voice,
    timings: Mapping[str, float],
    artifacts: Mapping[str, Artifact],
) -> Manifest:
    return Manifest(
        key=artifact_key(voice.tenant, voice.job, voice.attempt, "manifest.json"),
        job=voice.job,
        tenant=voice.tenant,
        attempt=voice.attempt,
        request=request.to_json(),
        seed=request.input.seed,
        plan=plan,
        tile=tile,
        versions={"python": python_version(), **{name: metadata.version(name) for name in _LIBRARIES}},
        timings=timings,
        artifacts=artifacts,
    )


class Stages:
    """The clock of a run: one stage at a time, told to the reporter when it begins and to the log when it ends."""

    def __init__(self, reporter: Reporter | Silence) -> None:
        self.reporter = reporter
        self._timings: dict[str, float] = {}
        self._name = ""
        self._since = 0.0

    def enter(self, name: str) -> None:
        """The next stage begins."""
        self.end()
        self._name, self._since = name, time.perf_counter()
        self.reporter.stage(name)

    def end(self) -> dict[str, float]:
        """Seconds of every stage so far."""
        if self._name:
            self._timings[self._name] = round(time.perf_counter() - self._since, 3)
            _log.info("%s took %.2f s", self._name, self._timings[self._name])
            self._name = ""
        return dict(self._timings)


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
