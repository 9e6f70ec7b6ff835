"""The step loop equals diffusers' pipeline bit for bit, and yields what it promises."""

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
from engine.mesh import Ranks
from engine.models import feed, wan
from tests.engine.ours import IMAGE, WAYS, a_mesh, a_video_request, our_latents, ours
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


def some_steps(request: Request, models: Path, ranks: Ranks) -> Any:
    row, given, mesh = request.row, request.input, a_mesh(request, ranks)
    model = load.load_denoiser(row, models, flow_shift=given.flow_shift, mesh=mesh)
    prompt, negative = (torch.ones(1, 512, 64) * value for value in (1.0, -1.0))
    noise = denoise.make_noise(row, width=128, height=96, num_frames=9, seed=given.seed, device=ranks.device)
    embeddings = denoise.Embeddings(prompt_bld=prompt, negative_bld=negative)
    fed = feed.from_text(noise, is_per_token=model.expand_timesteps)
    return denoise.denoise(model, embeddings, noise, feed=fed, steps=given.steps, scales=(4.0, 3.0), mesh=mesh)


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
    expert = wan.load_denoiser(row, models / name, flow_shift=3.0).experts[0]
    expected = pipeline(request, models, dtype=torch.bfloat16).transformer
    assert {n: p.dtype for n, p in expert.named_parameters()} == {n: p.dtype for n, p in expected.named_parameters()}
    assert expert.scale_shift_table.dtype == torch.float32
    assert expert.proj_out.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("prompt", ["a cat", "  a  &amp;amp; b\n\tc\u3000d ", "\u00c3\u00a9t\u00c3\u00a9", "x " * 600])
def test_embeddings_equal_those_of_diffusers(models: Path, ranks: Ranks, prompt: str) -> None:
    request = a_video_request("tiny-t2v")
    parts = load.load_text_parts(request.row, models, ranks=ranks)
    (mine,) = text.encode(parts, [prompt], ranks=ranks)
    with torch.no_grad():
        expected, _ = pipeline(request, models).encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=512
        )
    assert torch.equal(mine, expected)


def test_each_step_is_counted_and_timed(models: Path, ranks: Ranks) -> None:
    steps = list(some_steps(a_video_request("tiny-t2v", steps=5), models, ranks))
    assert [(step.step, step.steps) for step in steps] == [(k, 5) for k in range(1, 6)]
    assert all(step.seconds > 0 for step in steps)
    assert len({step.latents_bcfhw.sum().item() for step in steps}) == 5


def test_a_step_is_computed_only_when_it_is_asked_for(models: Path, ranks: Ranks) -> None:
    asked = some_steps(a_video_request("tiny-t2v", steps=100), models, ranks)
    first = next(asked)
    asked.close()
    assert first.step == 1
    assert torch.is_grad_enabled()


def test_a_step_that_was_yielded_does_not_change_any_more(models: Path, ranks: Ranks) -> None:
    steps = some_steps(a_video_request("tiny-ti2v", steps=3), models, ranks)
    first = next(steps)
    before = first.latents_bcfhw.clone()
    list(steps)
    assert torch.equal(first.latents_bcfhw, before)
    with pytest.raises(FrozenInstanceError):
        first.step = 9


@pytest.mark.parametrize("name", ["tiny-i2v", "tiny-ti2v"])
def test_the_image_has_a_say_and_ti2v_begins_with_it(models: Path, ranks: Ranks, name: str) -> None:
    request = a_video_request(name, **IMAGE)
    light, dark = (ours(request, models, ranks, file=a_file(Image.new("RGB", (64, 64), c))) for c in ("white", "black"))
    assert not torch.equal(light.latents, dark.latents)
    if name == "tiny-ti2v":
        other_seed = ours(a_video_request(name, **IMAGE, seed=8), models, ranks, file=a_file(Image.new("RGB", (9, 9))))
        assert torch.equal(other_seed.latents[:, :, 0], dark.latents[:, :, 0])
        assert not torch.equal(other_seed.latents[:, :, 1], dark.latents[:, :, 1])


@pytest.mark.parametrize("change", [{"seed": 8}, {"prompt": "a bear"}, {"flow_shift": 9.0}, {"guidance_scale_2": 9.0}])
def test_every_input_has_a_say(models: Path, ranks: Ranks, change: dict[str, Any]) -> None:
    request = a_video_request("tiny-t2v")
    other = a_video_request("tiny-t2v", **change)
    assert not torch.equal(our_latents(request, models, ranks)[0], our_latents(other, models, ranks)[0])
