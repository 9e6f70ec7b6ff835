"""Worker: one job on one rank, from top to bottom.

In: the request and the ranks. Out: artifacts in the store, the manifest last, and the events of it.
All ranks walk the same way until the latents are finished; the rest is the reporter's.
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

from engine import decode, denoise, first_frame, image, load, text, video
from engine.adapters.store import Store
from engine.contract.artifact import Artifact, Manifest, encode
from engine.contract.errors import Invalid, JobFailed
from engine.contract.job import artifact_key
from engine.contract.models import ModelRow
from engine.contract.plan import Plan, check, choose
from engine.contract.request import Request
from engine.contract.settings import Settings
from engine.image import Picture
from engine.mesh import Mesh, Ranks, divide
from engine.models import feed, wan
from engine.report import Reporter, Silence, Voice

_log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "diffusers", "transformers")


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
        # Before the weights: a bad picture is found in a second, they take minutes.
        picture = _picture(request, outlet) if outlet else None
        latents, vae = make_latents(request, Path(settings.models_dir), picture=picture, mesh=mesh, stages=stages)
        # The other ranks are done: their devices are free for the next job while this one is decoded.
        ranks.close()
        if outlet:
            frames = _decode(vae, latents, stages=stages)
            inputs = {"image": picture.upload} if picture else {}
            manifest = _store(frames, request, plan, inputs=inputs, outlet=outlet, stages=stages)
            reporter.close()
            outlet.voice.completed(manifest)
    finally:
        reporter.close()


def _picture(request: Request, outlet: Outlet) -> Picture | None:
    given = request.input
    if given.image is None:
        return None
    return image.fetch(outlet.store, given.image, tenant=outlet.voice.tenant, size=(given.width, given.height))


def make_latents(
    request: Request, models_dir: Path, *, picture: Picture | None = None, mesh: Mesh, stages: "Stages"
) -> tuple[torch.Tensor, Any]:
    """Finished latents, and on the reporter the autoencoder to decode them with. The experts are freed on return.

    `picture` is what the request's image names; the reporter alone has it.
    """
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
    embeddings = denoise.Embeddings(prompt_bld=prompt, negative_bld=negative[0] if negative else None)
    size = {"width": given.width, "height": given.height, "num_frames": given.num_frames}
    latents = denoise.make_noise(row, **size, seed=given.seed, device=ranks.device)
    fed = _feed(request, model, latents, picture=picture, vae=vae, ranks=ranks)
    stages.enter("denoising")
    second = given.guidance_scale if given.guidance_scale_2 is None else given.guidance_scale_2
    scales = (given.guidance_scale, second)
    for step in denoise.denoise(model, embeddings, latents, feed=fed, steps=given.steps, scales=scales, mesh=mesh):
        latents = step.latents_bcfhw
        stages.reporter.step(step.step, seconds=step.seconds)
    return fed.finish(latents), vae


def _feed(
    request: Request, model: wan.Denoiser, noise: torch.Tensor, *, picture: Picture | None, vae: Any, ranks: Ranks
) -> feed.Feed:
    """How the experts are fed; with an image, all ranks must call it."""
    given, is_per_token = request.input, model.expand_timesteps
    if given.image is None:
        return feed.from_text(noise, is_per_token=is_per_token)
    num_frames = feed.num_image_frames(given.num_frames, is_per_token=is_per_token)
    latents = first_frame.encode(vae, picture.rgb if picture else None, num_frames=num_frames, ranks=ranks)
    return feed.from_image(noise, latents, mask_channels=request.row.temporal_stride, is_per_token=is_per_token)


def _decode(vae: Any, latents: torch.Tensor, *, stages: "Stages") -> np.ndarray:
    stages.enter("decoding")
    return decode.decode(vae, latents)


def _store(
    frames: np.ndarray,
    request: Request,
    plan: Plan,
    *,
    inputs: Mapping[str, Artifact],
    outlet: Outlet,
    stages: "Stages",
) -> bytes:
    """Put the video, the poster and then the manifest; returns the manifest's bytes."""
    voice = outlet.voice

    def put(path: Path, content_type: str, facts: Mapping[str, int | float] | None = None) -> Artifact:
        key = artifact_key(voice.tenant, voice.job, voice.attempt, path.name)
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
        body = encode(_manifest(request, plan, voice=voice, timings=timings, artifacts=artifacts, inputs=inputs))
        manifest.write_bytes(body)
        put(manifest, "application/json")
    return body


def _manifest(
    request: Request,
    plan: Plan,
    *,
    voice: Voice,
    timings: Mapping[str, float],
    artifacts: Mapping[str, Artifact],
    inputs: Mapping[str, Artifact],
) -> Manifest:
    return Manifest(
        key=artifact_key(voice.tenant, voice.job, voice.attempt, "manifest.json"),
        job=voice.job,
        tenant=voice.tenant,
        attempt=voice.attempt,
        request=request.to_json(),
        seed=request.input.seed,
        plan=plan,
        versions={"python": python_version(), **{name: metadata.version(name) for name in _LIBRARIES}},
        timings=timings,
        artifacts=artifacts,
        inputs=inputs,
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
