"""Image: an upload becomes a picture of the video's size, as the model's autoencoder takes it.

In: bytes that anybody may have sent. Out: a picture in RGB, upright, cropped to the video's shape and scaled to its
size. Whatever is wrong with the bytes leaves as JobFailed("input_invalid"); no other attempt would help. It does not
know torch. Colour profiles are not applied: the models were trained on pictures that were read like this.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from engine.adapters.store import Store
from engine.contract.artifact import Artifact
from engine.contract.errors import JobFailed, NotFound
from engine.contract.upload import UPLOAD_MAX_BYTES, UPLOAD_MAX_PIXELS, type_of

# The only decoders that a sender reaches: Pillow has dozens, some of which run other programs.
_FORMATS = ("PNG", "JPEG", "WEBP")
# What Pillow raises for bytes that are cut, altered or made to do harm.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, LookupError, TypeError, ArithmeticError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What a video starts from."""

    rgb: Image.Image
    upload: Artifact
    """The file that it was read from."""


def fetch(store: Store, key: str, *, size: tuple[int, int]) -> Picture:
    """The upload under `key` as a picture of this width and height. Raises JobFailed, or Unavailable."""
    try:
        with store.open(key) as file:
            body = file.read(UPLOAD_MAX_BYTES + 1)
    except NotFound as error:
        raise _invalid(f"the image {key.rpartition('/')[2]} is not in the store; upload it, and ask again") from error
    upload = Artifact.of(body, key=key, content_type=type_of(body) or "application/octet-stream")
    return Picture(rgb=read(body, size=size), upload=upload)


def read(body: bytes, *, size: tuple[int, int]) -> Image.Image:
    """The picture in `body`, cropped around its middle to the shape of `size` and scaled to it.

    Of the right shape, it equals what diffusers' VideoProcessor makes of the same file. Raises JobFailed.
    """
    if len(body) > UPLOAD_MAX_BYTES:
        raise _invalid(f"the image has more than {UPLOAD_MAX_BYTES} bytes; send a smaller file")
    with _decoding():
        picture = Image.open(io.BytesIO(body), formats=_FORMATS)
        # Known from the header: nothing has been decoded yet.
        if picture.width * picture.height > UPLOAD_MAX_PIXELS:
            raise _too_large(f"{picture.width} x {picture.height}")
        # A JPEG with further pictures (MPO) is a photo with its preview, not an animation.
        if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
            raise _invalid("the image is an animation; send a single picture")
        return ImageOps.fit(_opaque(ImageOps.exif_transpose(picture)), size, Image.Resampling.LANCZOS)


def _opaque(picture: Image.Image) -> Image.Image:
    """In RGB, on white where it is transparent: what is under transparent pixels nobody has ever seen."""
    if picture.mode.startswith("I;16"):
        # The upper byte, as Pillow reads colours of 16 bits; its own conversion makes all but black white.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


@contextmanager
def _decoding() -> Iterator[None]:
    """Whatever Pillow says about bad bytes, as one sentence about the image."""
    try:
        with warnings.catch_warnings():
            # What else it has to say of a stranger's file is not for the log.
            warnings.simplefilter("ignore")
            # Above its own limit of pixels Pillow warns, and raises only above twice that.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large("far too large") from error
    except UnidentifiedImageError as error:
        raise _invalid("the image is no PNG, JPEG or WebP, or is damaged at its beginning") from error
    except _BROKEN as error:
        raise _invalid(f"the image is damaged: {str(error).partition(chr(10))[0] or type(error).__name__}") from error


def _too_large(given: str) -> JobFailed:
    return _invalid(f"the image is {given}; allowed: up to {UPLOAD_MAX_PIXELS:,} pixels")


def _invalid(message: str) -> JobFailed:
    return JobFailed("input_invalid", message, retryable=False)
