"""The mp4 plays everywhere, while it loads; its bytes depend on the frames alone."""

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from engine.video import probe, write_mp4, write_poster


def some_frames(num_frames: int = 9, height: int = 96, width: int = 128) -> np.ndarray:
    blocks = np.random.default_rng(0).integers(0, 256, (num_frames, height // 8, width // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture
def mp4(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    write_mp4(some_frames(), path, fps=8)
    return path


def test_it_is_h264_in_the_pixel_format_of_every_browser(mp4: Path) -> None:
    with av.open(str(mp4)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, codec.colorspace, codec.color_range) == ("h264", "yuv420p", 1, 1)


def test_the_index_comes_before_the_data(mp4: Path) -> None:
    body = mp4.read_bytes()
    assert 0 < body.index(b"moov") < body.index(b"mdat")


def test_the_probe_tells_what_went_in(mp4: Path) -> None:
    assert probe(mp4) == {"width": 128, "height": 96, "num_frames": 9, "fps": 8, "duration_s": 1.125}


def test_the_frames_come_out_as_they_went_in(tmp_path: Path) -> None:
    path, colours = tmp_path / "colours.mp4", np.array([(200, 30, 30), (30, 200, 30), (30, 30, 200)], np.uint8)
    write_mp4([np.broadcast_to(colour, (64, 64, 3)) for colour in colours], path, fps=24)
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24")[32, 32] for frame in container.decode(video=0)]
    assert np.abs(np.array(shown, int) - colours).max() <= 6


@pytest.mark.parametrize(("height", "width", "num_frames"), [(32, 32, 1), (704, 1280, 5)])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, height: int, width: int, num_frames: int) -> None:
    frames = some_frames(num_frames, height, width)
    for name in ("a.mp4", "b.mp4"):
        write_mp4(frames, tmp_path / name, fps=16)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_the_bytes_do_not_depend_on_what_was_in_memory_before(tmp_path: Path) -> None:
    """x264's mbtree reads memory that it has not written: the same run of the engine gave another file now and then."""
    np.save(tmp_path / "frames.npy", some_frames(5, 224, 160))
    code = "import sys, pathlib, numpy, engine.video; a, b = map(pathlib.Path, sys.argv[1:]); "
    code += "engine.video.write_mp4(numpy.load(a), b, fps=8)"
    for filling in ("1", "85", "170"):
        command = [sys.executable, "-c", code, str(tmp_path / "frames.npy"), str(tmp_path / f"{filling}.mp4")]
        subprocess.run(command, env={**os.environ, "MALLOC_PERTURB_": filling}, check=True)
    assert len({path.read_bytes() for path in tmp_path.glob("*.mp4")}) == 1


def test_the_poster_is_the_middle_frame(tmp_path: Path) -> None:
    frames = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 128, 255)])
    write_poster(frames, tmp_path / "poster.jpg")
    with Image.open(tmp_path / "poster.jpg") as poster:
        assert (poster.format, poster.size) == ("JPEG", (64, 64))
        assert np.abs(np.asarray(poster).astype(int) - 128).max() <= 2
