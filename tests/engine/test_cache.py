"""Steps that reuse what others computed: which ones, the same on any number of ranks, and what a resume needs."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MagCacheConfig, TaylorSeerCacheConfig

from engine import cache, calibrate
from engine.contract.models import CATALOG
from engine.contract.request import Request
from engine.latents import make_latents
from engine.mesh import Ranks, divide
from engine.models import wan
from engine.stop import Stopped
from tests.engine.ours import (
    ALONE,
    IMAGE,
    Drain,
    a_run,
    a_video_request,
    block_calls,
    checkpoints,
    our_latents,
    our_parts,
    our_steps,
)
from tests.engine.theirs import arguments, pipeline

STEPS = 16
REAL = [name for name, row in CATALOG.items() if row.hub]
CACHES = ("magcache", "taylorseer")


def a_cached_request(model: str, name: str, **inputs: Any) -> Request:
    return a_video_request(model, cache=name, steps=STEPS, **inputs)


def experts_of(request: Request, models: Path) -> tuple[int, ...]:
    given = request.input
    setting = {"sampler": given.sampler, "flow_shift": given.flow_shift, "steps": given.steps}
    return wan.load_schedule(request.row, models / request.model, **setting, device=torch.device("cpu")).experts


# Which steps: pure.


@pytest.mark.parametrize("name", REAL)
def test_the_published_calibrations_spare_steps_but_not_the_first_ones(name: str) -> None:
    row = CATALOG[name]
    first = 26 if name == "wan2.2-t2v-a14b" else 15
    experts = [0] * row.steps.default if row.boundary is None else [0] * first + [1] * (row.steps.default - first)
    reused = cache.magcache_steps(row.magnitudes, experts)
    assert len(experts) // 8 <= len(reused) <= len(experts) * 2 // 3
    assert not reused & set(range(3))
    assert first not in reused


def test_no_residual_is_reused_more_often_than_the_row_allows() -> None:
    ratios = cache.Magnitudes(ratios=((1.0,) * 40,), retention=(0.1,))
    assert sorted(cache.magcache_steps(ratios, [0] * 10)) == [1, 2, 4, 5, 7, 8]


def test_a_large_change_is_computed() -> None:
    ratios = cache.Magnitudes(ratios=((1.0, 1.0, 0.9, 1.0, 1.0),), retention=(0.4,), max_reused=4)
    assert sorted(cache.magcache_steps(ratios, [0] * 5)) == [3, 4]


@pytest.mark.parametrize("steps", range(1, 9))
def test_taylorseer_computes_the_first_and_the_last_steps_of_each_expert(steps: int) -> None:
    reused = cache.taylorseer_steps([0] * steps + [1] * 40)
    assert not reused & {0, 1, 2, steps - 1, steps, steps + 1, steps + 2, steps + 39}
    assert len(reused & set(range(steps, steps + 40))) == 24


# The numbers, against diffusers' own hooks.


def theirs_cached(request: Request, models: Path, configs: list[Any]) -> torch.Tensor:
    pipe = pipeline(request, models)
    for expert, config in zip((pipe.transformer, pipe.transformer_2), configs, strict=False):
        expert.enable_cache(config)
    return pipe(**arguments(request), output_type="latent").frames


@pytest.mark.parametrize(("model", "image"), [("tiny-t2v", {}), ("tiny-ti2v", IMAGE)])
def test_magcache_equals_that_of_diffusers(models: Path, ranks: Ranks, model: str, image: dict[str, str]) -> None:
    request = a_cached_request(model, "magcache", **image)
    counts, magnitudes = Counter(experts_of(request, models)), request.row.magnitudes
    configs = [
        MagCacheConfig(
            threshold=magnitudes.threshold,
            max_skip_steps=magnitudes.max_reused,
            retention_ratio=magnitudes.retention[expert],
            num_inference_steps=counts[expert],
            mag_ratios=list(ratios),
        )
        for expert, ratios in enumerate(magnitudes.ratios)
    ]
    mine, _ = our_latents(request, models, ranks)
    assert torch.equal(mine, theirs_cached(request, models, configs))
    assert not torch.equal(mine, our_latents(a_video_request(model, steps=STEPS, **image), models, ranks)[0])


def test_taylorseer_is_that_of_diffusers(models: Path, ranks: Ranks) -> None:
    """They continue each pass, we what guidance makes of both: the same but for rounding."""
    request = a_cached_request("tiny-t2v", "taylorseer")
    counts = Counter(experts_of(request, models))
    configs = [
        TaylorSeerCacheConfig(
            cache_interval=cache.INTERVAL,
            disable_cache_before_step=cache.WARM_UP,
            disable_cache_after_step=counts[expert] - 1,
            taylor_factors_dtype=torch.float32,
            use_lite_mode=True,
        )
        for expert in (0, 1)
    ]
    mine, _ = our_latents(request, models, ranks)
    torch.testing.assert_close(mine, theirs_cached(request, models, configs), atol=1e-4, rtol=1e-4)
    assert not torch.equal(mine, our_latents(a_video_request("tiny-t2v", steps=STEPS), models, ranks)[0])


# How much is spared.


@pytest.mark.parametrize("name", ["none", *CACHES])
def test_a_reused_step_computes_no_block(models: Path, ranks: Ranks, name: str) -> None:
    request = a_cached_request("tiny-ti2v", name)
    row, given, mesh = request.row, request.input, divide(ranks, ALONE)
    parts = our_parts(request, models, mesh)
    calls = block_calls(parts.denoiser.experts[0]())
    so_far = [len(calls) for _ in our_steps(parts.denoiser, row, given, mesh, cache=parts.cache)]
    # Two passes through three blocks.
    expected = [0 if step in parts.cache.reused else 6 for step in range(STEPS)]
    assert [after - before for before, after in pairwise([0, *so_far])] == expected
    assert (len(parts.cache.reused) > STEPS // 3) == (name != "none")


# After an end before the time.


@pytest.mark.parametrize("name", CACHES)
def test_a_run_that_ends_among_reused_steps_goes_on_to_the_same_latents(
    models: Path, ranks: Ranks, tmp_path: Path, name: str
) -> None:
    """MagCache's residual is in no checkpoint: the run goes on from before the last step that was computed."""
    request = a_cached_request("tiny-t2v", name)
    undisturbed, _ = our_latents(request, models, ranks)
    reused = cache.make_cache(name, request.row, experts_of(request, models)).reused
    for end in [step + 1 for step in reused if step + 1 in reused][:2]:
        with pytest.raises(Stopped):
            make_latents(a_run(request, models, ranks, stop=Drain(after=end), checkpoints=checkpoints(tmp_path)))
        left_at = checkpoints(tmp_path).newest().step
        assert left_at not in reused if name == "magcache" else left_at == end
        resumed, _ = make_latents(a_run(request, models, ranks, checkpoints=checkpoints(tmp_path)))
        assert torch.equal(resumed, undisturbed)
        checkpoints(tmp_path).clear()


# The calibration.


def test_calibrate_prints_one_ratio_per_step_of_each_expert(
    models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request = tmp_path / "request.json"
    request.write_text('{"model": "tiny-t2v", "input": {"prompt": "a cat", "width": 64, "height": 64, "steps": 6}}')
    assert calibrate.main(["--request", str(request), "--models", str(models)]) == 0
    found = re.findall(r"expert \d, \d steps: (.*)", capfd.readouterr().out)
    ratios = [list(map(float, line.split(", "))) for line in found]
    assert [line[0] for line in ratios] == [1.0, 1.0]
    assert sum(map(len, ratios)) == 6
    assert all(0.5 < ratio < 2 for line in ratios for ratio in line)


def test_calibrate_says_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    request = tmp_path / "request.json"
    request.write_text('{"model": "tiny-t2v", "input": {"prompt": "a cat", "width": 1}}')
    assert calibrate.main(["--request", str(request), "--models", str(tmp_path)]) == 1
    assert "calibrate: /input/width: 1 is" in capfd.readouterr().err
