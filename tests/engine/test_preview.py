"""A preview is a small picture, of any latents that the models have."""

import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.adapters.store import DirStore
from engine.mesh import Ranks, divide
from engine.preview import Previews, picture
from tests.engine.ours import ALONE, a_video_request, our_model, our_steps
from tests.servers import wait_until

LATENTS = torch.zeros(1, 16, 1, 2, 2)


def opened(body: bytes) -> Image.Image:
    return Image.open(BytesIO(body))


@pytest.mark.parametrize("channels", [16, 48])
@pytest.mark.parametrize(("height", "width"), [(90, 160), (160, 90), (64, 64), (2, 2), (1, 100)])
def test_noise_makes_a_picture_of_at_most_20_kb(channels: int, height: int, width: int) -> None:
    noise = 3 * np.random.default_rng(7).standard_normal((channels, height, width), dtype=np.float32)
    body = picture(noise)
    image = opened(body)
    assert (image.format, max(image.size)) == ("JPEG", 320)
    assert len(body) <= 20_000


@pytest.mark.parametrize("channels", [16, 48])
def test_latents_of_no_deviation_are_one_colour_within_range(channels: int) -> None:
    pixels = np.asarray(opened(picture(np.zeros((channels, 45, 80), dtype=np.float32))))
    assert pixels.shape == (180, 320, 3)
    assert 0 < pixels.min() <= pixels.max() < 255
    assert (pixels == pixels[0, 0]).all()


def test_a_picture_is_due_every_interval(tmp_path: Path) -> None:
    previews = Previews(DirStore(tmp_path), "a/b/a1/preview.jpg", interval_s=1000)
    previews.offer(LATENTS, step=1)
    wait_until(lambda: previews.newest, what="the first one is stored")
    for step in range(2, 10):
        previews.offer(LATENTS, step=step)
    previews.close()
    assert previews.newest["step"] == 1


def test_latents_of_other_models_have_no_picture(tmp_path: Path) -> None:
    previews = Previews(DirStore(tmp_path), "a/b/a1/preview.jpg", interval_s=0)
    previews.offer(torch.zeros(1, 12, 1, 2, 2), step=1)
    previews.offer(LATENTS, step=2)
    wait_until(lambda: previews.newest, what="the one after it is stored")
    previews.close()
    assert previews.newest["step"] == 2


def test_a_store_that_fails_is_logged_once_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    previews = Previews(DirStore(file), "a/b/a1/preview.jpg", interval_s=0)

    def offered() -> bool:
        previews.offer(LATENTS, step=1)
        return "cannot be stored" in caplog.text

    wait_until(offered, what="the store failed")
    for _ in range(20):
        offered()
        time.sleep(0.01)
    file.unlink()
    wait_until(lambda: offered() and previews.newest, what="the store is back")
    previews.close()
    assert caplog.text.count("cannot be stored") == 1


def test_a_step_gives_the_clean_estimate_and_the_last_one_is_the_result(models: Path, ranks: Ranks) -> None:
    """UniPC ends at noise 0, where what it takes the latents to be is what they are."""
    request, mesh = a_video_request("tiny-ti2v"), divide(ranks, ALONE)
    model = our_model(request.row, request.input, models, mesh)
    steps = list(our_steps(model, request.row, request.input, mesh))
    assert len({step.clean_bcfhw.sum().item() for step in steps}) == 4
    assert not torch.equal(steps[0].clean_bcfhw, steps[0].after.latents_bcfhw)
    torch.testing.assert_close(steps[-1].clean_bcfhw, steps[-1].after.latents_bcfhw)
