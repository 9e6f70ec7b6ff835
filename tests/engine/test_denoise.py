"""The step loop equals diffusers' pipeline bit for bit, and yields what it promises."""

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine import denoise, load, text
from engine.contract.models import CATALOG
from engine.contract.request import Request
from engine.mesh import Ranks, divide
from tests.engine.ours import (
    ALONE,
    IMAGE,
    WAYS,
    a_read_picture,
    a_video_request,
    our_latents,
    our_model,
    our_steps,
    ours,
)
from tests.engine.theirs import pipeline, theirs
from tests.pictures import a_file

CASES = {
    "small": {},
    "defaults of the row": {"width": 128, "height": 96, "num_frames": 9, "steps": 8},
    "one pass": {"guidance_scale": 1.0},
    "second scale of one": {"guidance_scale_2": 1.0},
    "odd size": {"width": 96, "height": 32, "num_frames": 13},
    "upright": {"width": 32, "height": 96},
    "no shift": {"flow_shift": 1.0, "steps": 7},
    "one step": {"steps": 1},
    "no negative prompt": {"negative_prompt": ""},
}
# What an image changes: sizes, and how often and by which expert it is seen.
IMAGE_CASES = ("small", "defaults of the row", "one pass", "second scale of one", "odd size", "upright")
PAIRS = [(way, case) for way, (_, image) in WAYS.items() for case in (IMAGE_CASES if image else CASES)]


def some_steps(request: Request, models: Path, ranks: Ranks) -> Iterator[denoise.Step]:
    row, given, mesh = request.row, request.input, divide(ranks, ALONE)
    return our_steps(our_model(row, given, models, mesh), row, given, mesh)


@pytest.mark.parametrize(("way", "case"), PAIRS)
def test_latents_and_frames_equal_those_of_diffusers(models: Path, ranks: Ranks, way: str, case: str) -> None:
    name, image = WAYS[way]
    inputs = {**CASES[case], **image}
    if CATALOG[name].guidance_scale_2 is None:
        inputs.pop("guidance_scale_2", None)
    request = a_video_request(name, **inputs)
    mine, expected = ours(request, models, ranks), theirs(request, models)
    assert torch.equal(mine.latents, expected.latents)
    assert np.array_equal(mine.frames, expected.frames)


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_equals_diffusers_and_keeps_what_must_stay_float32(models: Path, ranks: Ranks, way: str) -> None:
    name, image = WAYS[way]
    request = a_video_request(name, **image)
    row = replace(request.row, dtype="bfloat16")
    parts = load.start(row, models / name, request.input, mesh=divide(ranks, ALONE))
    expert = parts.denoiser.experts[0]()
    expected = pipeline(request, models, dtype=torch.bfloat16).transformer
    assert {n: p.dtype for n, p in expert.named_parameters()} == {n: p.dtype for n, p in expected.named_parameters()}
    assert expert.scale_shift_table.dtype == torch.float32
    assert expert.proj_out.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("prompt", ["a cat", "  a  &amp;amp; b\n\tc\u3000d ", "\u00c3\u00a9t\u00c3\u00a9", "x " * 600])
def test_embeddings_equal_those_of_diffusers(models: Path, ranks: Ranks, prompt: str) -> None:
    request = a_video_request("tiny-t2v")
    parts = load.load_text_parts(request.row, models / request.model, ranks=ranks)
    (mine,) = text.encode(parts, [prompt], ranks=ranks)
    with torch.no_grad():
        expected, _ = pipeline(request, models).encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=512
        )
    assert torch.equal(mine, expected)


def test_each_step_is_counted_and_timed(models: Path, ranks: Ranks) -> None:
    steps = list(some_steps(a_video_request("tiny-t2v", steps=5), models, ranks))
    assert [(step.after.step, step.steps) for step in steps] == [(k, 5) for k in range(1, 6)]
    assert all(step.seconds > 0 for step in steps)
    assert len({step.after.latents_bcfhw.sum().item() for step in steps}) == 5


def test_a_step_is_computed_only_when_it_is_asked_for(models: Path, ranks: Ranks) -> None:
    asked = some_steps(a_video_request("tiny-t2v", steps=100), models, ranks)
    first = next(asked)
    asked.close()
    assert first.after.step == 1
    assert torch.is_grad_enabled()


def test_a_step_that_was_yielded_does_not_change_any_more(models: Path, ranks: Ranks) -> None:
    steps = some_steps(a_video_request("tiny-ti2v", steps=3), models, ranks)
    first = next(steps)
    before = first.after.latents_bcfhw.clone()
    list(steps)
    assert torch.equal(first.after.latents_bcfhw, before)
    with pytest.raises(FrozenInstanceError):
        first.after = None


@pytest.mark.parametrize("name", ["tiny-i2v", "tiny-ti2v"])
def test_the_image_has_a_say_and_ti2v_begins_with_it(models: Path, ranks: Ranks, name: str) -> None:
    request, other_seed = a_video_request(name, **IMAGE), a_video_request(name, **IMAGE, seed=8)
    white, black = (a_read_picture(request, a_file(Image.new("RGB", (9, 9), c))) for c in ("white", "black"))
    light, dark = (our_latents(request, models, ranks, picture=picture)[0] for picture in (white, black))
    other, _ = our_latents(other_seed, models, ranks, picture=black)
    assert not torch.equal(light, dark)
    assert not torch.equal(other[:, :, 1], dark[:, :, 1])
    assert torch.equal(other[:, :, 0], dark[:, :, 0]) == (name == "tiny-ti2v")


@pytest.mark.parametrize("change", [{"seed": 8}, {"prompt": "a bear"}, {"flow_shift": 9.0}, {"guidance_scale_2": 9.0}])
def test_every_input_has_a_say(models: Path, ranks: Ranks, change: dict[str, Any]) -> None:
    request = a_video_request("tiny-t2v")
    other = a_video_request("tiny-t2v", **change)
    assert not torch.equal(our_latents(request, models, ranks)[0], our_latents(other, models, ranks)[0])
