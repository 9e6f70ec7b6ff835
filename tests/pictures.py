"""Pictures as people send them: real files, made by Pillow."""

import io
from typing import Any

import numpy as np
from PIL import Image


def a_picture(width: int = 64, height: int = 64, *, mode: str = "RGB") -> Image.Image:
    """A picture in which no two regions look alike; always the same one."""
    colours = np.random.default_rng(7).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def a_file(picture: Image.Image | None = None, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture's file."""
    file = io.BytesIO()
    (picture or a_picture()).save(file, kind, **options)
    return file.getvalue()
