"""Any upload becomes a picture of the video's size, or one sentence about what is wrong with it."""

import io
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine import first_frame, image
from engine.adapters.store import DirStore
from engine.contract.errors import JobFailed
from engine.contract.upload import UPLOAD_MAX_BYTES, UPLOAD_MAX_PIXELS
from engine.mesh import Ranks
from engine.models import wan
from tests.pictures import a_file, a_picture

SIZE = (64, 32)
KINDS = ("PNG", "JPEG", "WEBP")
ORIENTATION = 0x0112


def colours(body: bytes, *, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.asarray(image.read(body, size=size)).astype(int)


def refusal(body: bytes) -> str:
    with pytest.raises(JobFailed) as failure:
        image.read(body, size=SIZE)
    assert (failure.value.code, failure.value.retryable) == ("input_invalid", False)
    assert "\n" not in failure.value.message
    return failure.value.message


def a_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def an_animation(kind: str) -> bytes:
    return a_file(a_picture(), kind, save_all=True, append_images=[Image.new("RGB", (64, 64))])


@pytest.mark.parametrize("size", [(64, 32), (128, 64), (300, 150), (16, 8), (2, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_the_right_shape_equals_that_of_diffusers(kind: str, size: tuple[int, int]) -> None:
    body = a_file(a_picture(*size), kind)
    theirs = VideoProcessor(vae_scale_factor=8).preprocess(Image.open(io.BytesIO(body)).convert("RGB"), 32, 64)
    mine = VideoProcessor(vae_scale_factor=8).preprocess(image.read(body, size=SIZE), 32, 64)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("way", ["wide", "high"])
def test_another_shape_loses_its_edges_and_keeps_its_middle(way: str) -> None:
    width, height = (400, 32) if way == "wide" else (64, 400)
    picture = Image.new("RGB", (width, height), "red")
    picture.paste("blue", ((width - 64) // 2, (height - 32) // 2, (width + 64) // 2, (height + 32) // 2))
    assert (colours(a_file(picture)) == (0, 0, 255)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (7, 3)])
def test_any_size_becomes_that_of_the_video(size: tuple[int, int]) -> None:
    assert (colours(a_file(Image.new("RGB", size, (10, 20, 30)))) == (10, 20, 30)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_stands_upright(kind: str, orientation: int) -> None:
    """Cameras write pixels as the sensor lies, and in EXIF how to turn them."""
    turns: dict[int, Any] = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = a_picture(64, 32)
    lying = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    best = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    found = colours(a_file(lying, kind, exif=exif, **best))
    assert np.abs(found - np.asarray(upright).astype(int)).max() <= (12 if kind == "JPEG" else 0)


def test_what_is_transparent_is_white() -> None:
    picture = Image.new("RGBA", SIZE, (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 32, 32))
    picture.paste((0, 0, 0, 128), (0, 0, 32, 16))
    found = colours(a_file(picture))
    assert [tuple(found[y, x]) for y, x in ((24, 60), (24, 4), (4, 4))] == [(255,) * 3, (0, 0, 255), (127,) * 3]


def test_an_opaque_picture_with_alpha_is_the_same_picture() -> None:
    assert np.array_equal(colours(a_file(a_picture(mode="RGBA"))), colours(a_file(a_picture())))


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "1"), ("PNG", "L"), ("PNG", "LA"), ("PNG", "P"), ("JPEG", "L"), ("JPEG", "CMYK")]
)
def test_every_kind_of_colour_becomes_rgb(kind: str, mode: str) -> None:
    picture = a_picture(*SIZE, mode=mode)
    found = colours(a_file(picture, kind, **({"quality": 100} if kind == "JPEG" else {})))
    assert np.abs(found - np.asarray(picture.convert("RGB")).astype(int)).mean() < 2


def test_a_palette_may_have_transparent_colours() -> None:
    palette = Image.new("P", SIZE, 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(0, (0, 0, 32, 32))
    found = colours(a_file(palette, transparency=0))
    assert (tuple(found[8, 4]), tuple(found[8, 60])) == ((255, 255, 255), (0, 255, 0))


def test_grey_of_16_bits_keeps_its_shades() -> None:
    """Pillow's own conversion makes all but the darkest 256 of 65,536 shades white."""
    shades = np.linspace(0, 65535, 64 * 32).astype(np.uint16).reshape(32, 64)
    assert np.array_equal(colours(a_file(Image.fromarray(shades)))[:, :, 1], shades >> 8)


def test_a_photo_with_its_preview_is_a_photo() -> None:
    """Phones write JPEGs that hold a second picture (MPO)."""
    body = a_file(a_picture(*SIZE), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert colours(body).std() > 10


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    store = DirStore(tmp_path / "store")
    (tmp_path / "file").write_bytes(a_file(a_picture(), "JPEG"))
    store.put("default/uploads/cat.png", tmp_path / "file", content_type="image/png")
    picture = image.fetch(store, "default/uploads/cat.png", size=SIZE)
    assert picture.rgb.size == SIZE
    assert picture.upload.to_json()["content_type"] == "image/jpeg"


def test_an_upload_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match=r"the image cat\.png is not in the store") as failure:
        image.fetch(DirStore(tmp_path), "default/uploads/cat.png", size=SIZE)
    assert (failure.value.code, failure.value.retryable) == ("input_invalid", False)


BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no PNG, JPEG or WebP"),
    "text": (b"a cat", "no PNG, JPEG or WebP"),
    "a program for Ghostscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "no PNG, JPEG or WebP"),
    "a GIF": (a_file(a_picture(), "GIF"), "no PNG, JPEG or WebP"),
    "a BMP": (a_file(a_picture(), "BMP"), "no PNG, JPEG or WebP"),
    "an animated PNG": (an_animation("PNG"), "animation"),
    "an animated WebP": (an_animation("WEBP"), "animation"),
    "more bytes than allowed": (a_file() + b"\0" * UPLOAD_MAX_BYTES, f"{UPLOAD_MAX_BYTES} bytes"),
    "one row of pixels too many": (a_header(10_000, UPLOAD_MAX_PIXELS // 10_000 + 1), "50,000,000 pixels"),
    "a bomb that Pillow warns of": (a_header(10_000, 10_000), "50,000,000 pixels"),
    "a bomb that Pillow refuses": (a_header(2**31 - 1, 2**31 - 1), "50,000,000 pixels"),
    "a PNG that ends in its data": (a_header(100, 100), "damaged"),
    "a PNG without pixels": (a_header(0, 0), "damaged"),
    "a large and empty JPEG": (
        b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\x01\x03\x11\x01\xff\xd9",
        "pixels",
    ),
}


@pytest.mark.parametrize(("body", "says"), BAD.values(), ids=BAD)
def test_what_is_no_picture_to_start_from_is_refused_with_its_reason(body: bytes, says: str) -> None:
    assert says in refusal(body)


def test_a_bomb_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(a_header(13_000, 13_000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_refused(kind: str, share: float) -> None:
    whole = a_file(a_picture(256, 256), kind)
    assert "damaged" in refusal(whole[: int(len(whole) * share)])


@given(kind=st.sampled_from(KINDS), changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8))
def test_any_bytes_are_a_picture_or_refused(kind: str, changes: list[tuple[float, int]]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    body = bytearray(a_file(a_picture(16, 16), kind, exif=exif))
    for place, value in changes:
        body[int(place * len(body))] = value
    try:
        answer: Any = image.read(bytes(body), size=SIZE).size
    except JobFailed as failure:
        answer = failure.code
    assert answer in (SIZE, "input_invalid")


def test_latents_of_a_picture_are_those_of_its_values_between_minus_one_and_one(models: Path, ranks: Ranks) -> None:
    vae = wan.read_weights(wan.make_vae(models / "tiny-ti2v"), models / "tiny-ti2v" / "vae")
    picture = image.read(a_file(), size=(64, 64))
    found = first_frame.encode(vae, picture, num_frames=1, ranks=ranks)
    tensor = VideoProcessor(vae_scale_factor=16).preprocess(picture, 64, 64)[:, :, None]
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        expected = (vae.encode(tensor).latent_dist.mode() - mean) * (1.0 / std)
    assert torch.equal(found, expected)
