"""Every sampler: the numbers are those of diffusers' pipeline with it, and a run that was ended goes on with them."""

from itertools import product
from pathlib import Path

import pytest
import torch

from engine.contract.models import CATALOG, SAMPLERS
from engine.latents import make_latents
from engine.mesh import Ranks
from engine.models import wan
from engine.stop import Stopped
from tests.engine.ours import IMAGE, Drain, a_run, a_video_request, checkpoints, our_latents
from tests.engine.theirs import theirs

WAYS = {"tiny-t2v": {}, "tiny-ti2v": IMAGE}
# UniPC's are in test_denoise.py.
OTHERS = [name for name in SAMPLERS if name != "unipc"]


@pytest.mark.parametrize(("model", "sampler", "steps"), [*product(WAYS, OTHERS, (1, 5))])
def test_latents_equal_those_of_diffusers(models: Path, ranks: Ranks, model: str, sampler: str, steps: int) -> None:
    request = a_video_request(model, sampler=sampler, steps=steps, **WAYS[model])
    assert torch.equal(our_latents(request, models, ranks)[0], theirs(request, models).latents)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_run_that_was_ended_goes_on_to_the_same_latents(
    models: Path, ranks: Ranks, tmp_path: Path, sampler: str
) -> None:
    request = a_video_request("tiny-t2v", sampler=sampler, steps=6)
    undisturbed, _ = our_latents(request, models, ranks)
    ended_after = []
    for steps in (2, 3):
        with pytest.raises(Stopped):
            make_latents(a_run(request, models, ranks, stop=Drain(after=steps), checkpoints=checkpoints(tmp_path)))
        ended_after.append(checkpoints(tmp_path).newest().step)
    resumed, _ = make_latents(a_run(request, models, ranks, checkpoints=checkpoints(tmp_path)))
    assert ended_after == [2, 5]
    assert torch.equal(resumed, undisturbed)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_samplers_walk_along_the_same_sigmas(models: Path, sampler: str) -> None:
    """Four steps are those that distilled models were trained for: 1, 3/4, 1/2 and 1/4, shifted."""
    row = CATALOG["tiny-t2v"]
    setting = {"sampler": sampler, "flow_shift": 5.0, "steps": 4, "device": torch.device("cpu")}
    schedule = wan.load_schedule(row, models / row.name, **setting)
    shifted = torch.tensor([1.0, 15 / 16, 5 / 6, 5 / 8, 0.0])
    torch.testing.assert_close(schedule.scheduler.sigmas, shifted, atol=2e-3, rtol=0)
    assert schedule.experts == (0, 0, 1, 1)
