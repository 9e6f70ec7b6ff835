"""Latents: a request becomes finished latents, on all ranks together, from its first step or from where a run left it.

In: a Run. Out: latents, and on the reporter the autoencoder that decodes them. The run may be told to end between any
two steps (stop.py); a rank that hangs is ended by a watch whose patience is some of the run's own steps.
"""

import faulthandler
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine import first_frame, load, text
from engine.cache import StepCache
from engine.checkpoint import Checkpoints
from engine.contract.request import Request
from engine.denoise import Embeddings, Snapshot, denoise, make_noise
from engine.image import Picture
from engine.mesh import Mesh
from engine.models import feed
from engine.report import Reporter, Silence
from engine.stop import Stop, Stopped, Why

_log = logging.getLogger(__name__)

# The first step compiles, allocates and waits for weights; as long as the ranks wait for each other (mesh.py).
_FIRST_STEP_S = 900.0
# No step takes twenty times the slowest so far unless a rank hangs. Never less than a minute: a machine may pause.
_STEPS_OF_PATIENCE = 20.0
_PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One attempt of one request on one rank."""

    request: Request
    folder: Path
    """The model's."""
    mesh: Mesh
    stages: "Stages"
    stop: Stop
    picture: Picture | None
    """What the request's image names; None on all ranks but the reporter."""
    checkpoints: Checkpoints | None
    """None on all ranks but the reporter, and where there are none."""
    cache: StepCache | None = None
    """In place of the request's."""


def make_latents(run: Run) -> tuple[torch.Tensor, Any]:
    """The finished latents, and on the reporter the autoencoder. Raises JobFailed, and Stopped on all ranks together.

    The experts are freed on return.
    """
    row, given, ranks = run.request.row, run.request.input, run.mesh.ranks
    run.stages.enter("loading")
    start = _where_to_go_on(run)
    parts = load.start(row, run.folder, given, done=start.step if start else 0, mesh=run.mesh)
    size = {"width": given.width, "height": given.height, "num_frames": given.num_frames}
    noise_bcfhw = make_noise(row, **size, seed=given.seed, device=ranks.device)
    fed = _feed(run, parts, noise_bcfhw)
    if start is None or start.step < given.steps:
        embeddings = _embed(run)
        run.stages.enter("denoising")
        start = _take_steps(run, parts, embeddings, fed, start or Snapshot(step=0, latents_bcfhw=noise_bcfhw))
    return fed.finish(start.latents_bcfhw), parts.vae() if parts.vae else None


def _where_to_go_on(run: Run) -> Snapshot | None:
    ranks = run.mesh.ranks
    found = ranks.share(run.checkpoints.newest() if run.checkpoints else None)
    if found:
        _log.info("going on after step %d of %d", found.step, run.request.input.steps)
    return found.on(ranks.device) if found else None


def _embed(run: Run) -> Embeddings:
    row, given, ranks = run.request.row, run.request.input, run.mesh.ranks
    reader = load.load_text_parts(row, run.folder, ranks=ranks)
    run.stages.enter("encoding_text")
    prompts = [given.prompt, given.negative_prompt] if given.has_negative else [given.prompt]
    # The reader is freed on return: the largest thing on the reporter's device after the experts, and of no more use.
    prompt, *negative = text.encode(reader, prompts, ranks=ranks)
    return Embeddings(prompt_bld=prompt, negative_bld=negative[0] if negative else None)


def _feed(run: Run, parts: load.Parts, noise_bcfhw: torch.Tensor) -> feed.Feed:
    """How the experts are fed; with an image, the ranks meet in it."""
    given, is_per_token = run.request.input, parts.denoiser.expand_timesteps
    if given.image is None:
        return feed.from_text(noise_bcfhw, is_per_token=is_per_token)
    image_bcfhw = first_frame.encode(
        parts.vae() if parts.vae else None,
        run.picture.rgb if run.picture else None,
        num_frames=feed.num_image_frames(given.num_frames, is_per_token=is_per_token),
        ranks=run.mesh.ranks,
    )
    mask_channels = run.request.row.temporal_stride
    return feed.from_image(noise_bcfhw, image_bcfhw, mask_channels=mask_channels, is_per_token=is_per_token)


def _take_steps(run: Run, parts: load.Parts, embeddings: Embeddings, fed: feed.Feed, start: Snapshot) -> Snapshot:
    given = run.request.input
    second = given.guidance_scale if given.guidance_scale_2 is None else given.guidance_scale_2
    scales = (given.guidance_scale, second)
    cache = run.cache or parts.cache
    if reused := cache.reused:
        _log.info("%s: %d of %d steps reuse earlier ones", given.cache, len(reused), given.steps)
    at = start
    with run.stop.held(), watched() as watch:
        options = {"feed": fed, "scales": scales, "cache": cache, "mesh": run.mesh}
        for step in denoise(parts.denoiser, embeddings, start, **options):
            watch(step.seconds)
            run.stages.reporter.step(step.after.step, seconds=step.seconds, clean_bcfhw=step.clean_bcfhw)
            if step.after.is_whole:
                at = step.after
                if run.checkpoints:
                    run.checkpoints.offer(at)
            # Every rank asks after every step, so that all leave after the same one.
            why = Why(run.mesh.ranks.highest(run.stop.why()))
            if why is not Why.NOT:
                _leave(run, at, why)
        # The finished ones too: a decoding that fails must not cost the steps again.
        if run.checkpoints:
            run.checkpoints.write(at)
    return at


def _leave(run: Run, at: Snapshot, why: Why) -> None:
    _log.info("told to end (%s), after step %d", why.name.lower(), at.step)
    faulthandler.cancel_dump_traceback_later()
    if run.checkpoints:
        if why is Why.DRAIN:
            run.checkpoints.write(at)
        else:
            run.checkpoints.clear()
    run.mesh.ranks.close()
    raise Stopped(why)


@contextmanager
def watched(patience_s: float = _PATIENCE_S) -> Iterator[Callable[[float], None]]:
    """Ends this process, with a trace of all its threads in the log, unless it is called after every step, in time.

    A rank whose step takes far longer than the steps before hangs in a collective or on its device. The timer is C's
    own: it needs no thread that would look alive while the loop is not.
    """
    slowest = 0.0

    def watch(seconds: float) -> None:
        nonlocal slowest
        slowest = max(slowest, seconds)
        faulthandler.dump_traceback_later(max(patience_s, _STEPS_OF_PATIENCE * slowest), exit=True)

    faulthandler.dump_traceback_later(_FIRST_STEP_S, exit=True)
    try:
        yield watch
    finally:
        faulthandler.cancel_dump_traceback_later()


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
