"""The mp4 plays everywhere, while it loads; its bytes depend on the frames alone."""

import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from engine.video import probe, write_video


def some_frames(num_frames: int = 9, height: int = 96, width: int = 128) -> np.ndarray:
    blocks = np.random.default_rng(0).integers(0, 256, (num_frames, height // 8, width // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def write_mp4(frames: np.ndarray, path: Path, *, fps: int = 8, crf: int = 18) -> None:
    """All frames in one chunk."""
    write_video([frames], path, path.with_suffix(".jpg"), num_frames=len(frames), fps=fps, crf=crf)


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
    write_mp4(np.stack([np.broadcast_to(colour, (64, 64, 3)) for colour in colours]), path)
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
    code += "engine.video.write_video([numpy.load(a)], b, b.with_suffix('.jpg'), num_frames=5, fps=8, crf=18)"
    for filling in ("1", "85", "170"):
        command = [sys.executable, "-c", code, str(tmp_path / "frames.npy"), str(tmp_path / f"{filling}.mp4")]
        subprocess.run(command, env={**os.environ, "MALLOC_PERTURB_": filling}, check=True)
    assert len({path.read_bytes() for path in tmp_path.glob("*.mp4")}) == 1


@pytest.mark.parametrize("num_frames_per_chunk", [1, 4])
def test_the_bytes_do_not_depend_on_the_chunks(mp4: Path, num_frames_per_chunk: int) -> None:
    frames, chunked = some_frames(), mp4.with_name("chunked.mp4")
    chunks = [frames[k : k + num_frames_per_chunk] for k in range(0, 9, num_frames_per_chunk)]
    write_video(chunks, chunked, mp4.with_suffix(".jpg"), num_frames=9, fps=8, crf=18)
    assert chunked.read_bytes() == mp4.read_bytes()


def test_frames_are_encoded_as_they_come_and_not_kept(tmp_path: Path) -> None:
    alive: list[int] = []
    chunks: list[weakref.ref[np.ndarray]] = []

    def decoded() -> Iterator[np.ndarray]:
        for seed in range(30):
            alive.append(sum(chunk() is not None for chunk in chunks))
            chunk = np.random.default_rng(seed).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
            chunks.append(weakref.ref(chunk))
            yield chunk
            del chunk

    write_video(decoded(), tmp_path / "a.mp4", tmp_path / "a.jpg", num_frames=120, fps=8, crf=18)
    assert len(alive) == 30
    # The chunk that was just encoded, and the first one.
    assert max(alive) <= 2


def test_a_video_that_broke_off_is_written_anew_as_if_nothing_had_been(mp4: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield some_frames(6)
        raise torch.OutOfMemoryError("too large")

    whole, sizes = mp4.read_bytes(), {"num_frames": 9, "fps": 8, "crf": 18}
    with pytest.raises(torch.OutOfMemoryError):
        write_video(broken(), mp4, mp4.with_suffix(".jpg"), **sizes)
    write_video([some_frames()], mp4, mp4.with_suffix(".jpg"), **sizes)
    assert mp4.read_bytes() == whole


def test_a_lower_crf_keeps_more_and_plays_in_the_same_browsers(tmp_path: Path) -> None:
    sizes = []
    for crf in (1, 18, 51):
        write_mp4(some_frames(), tmp_path / f"{crf}.mp4", crf=crf)
        sizes.append((tmp_path / f"{crf}.mp4").stat().st_size)
        with av.open(str(tmp_path / f"{crf}.mp4")) as container:
            assert container.streams.video[0].codec_context.profile == "High"
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_the_poster_is_the_middle_frame(tmp_path: Path) -> None:
    chunks = [np.full((frames, 64, 64, 3), value, np.uint8) for frames, value in ((1, 0), (4, 128), (4, 255))]
    write_video(chunks, tmp_path / "video.mp4", tmp_path / "poster.jpg", num_frames=9, fps=8, crf=18)
    with Image.open(tmp_path / "poster.jpg") as poster:
        assert (poster.format, poster.size) == ("JPEG", (64, 64))
        assert np.abs(np.asarray(poster).astype(int) - 128).max() <= 2
