"""Preview: a small picture of the video while it is being made.

In: the scheduler's clean estimate of the latents after a step. Out: now and then a JPEG in the store. No autoencoder:
each latent cell becomes one pixel by a linear map, which shows what it is going to be, for next to nothing.

Shapes: b batch (1), c latent channels or colours, f latent frames, h and w latent cells, then pixels.
"""

import io
import logging
import queue
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.adapters.store import Store
from engine.contract.errors import CineventError

_log = logging.getLogger(__name__)

# Every two seconds is lively enough for a step of several.
_INTERVAL_S = 2.0
_LONGEST_SIDE = 320
_MOST_BYTES = 20_000
_QUALITIES = (85, 75, 60, 45, 30, 15)


def _factors(thousandths: str) -> np.ndarray:
    """One row per channel and the last one for all: red, green and blue, where -1 is black and 1 is full."""
    return np.array(thousandths.replace(",", " ").split(), dtype=np.float32).reshape(-1, 3) / 1000


# Fits of other people over many videos, rounded to thousandths, of the latents as the transformer sees them (scaled to
# mean 0 and deviation 1): wan_21_latent_rgb_proj, wan_22_latent_rgb_proj and their biases in latent-preview.h of
# github.com/leejet/stable-diffusion.cpp (MIT).
_FACTORS = {
    # The autoencoder of Wan2.1, which A14B has.
    16: _factors(
        """
        15 -148 480, 4 -11 -37, 212 63 17, 233 406 220, -52 -82 -69, 85 -161 11, -245 -507 -117, -151 18 7,
        -293 -208 -421, -188 51 178, -13 266 167, 28 109 109, -205 44 149, 14 -49 -7, 217 53 320, 155 83 65,
        -270 -235 -457
        """
    ),
    # That of Wan2.2, which TI2V-5B has.
    48: _factors(
        """
        17 -27 -19, -114 -29 -23, 0 21 5, -13 -107 -34, 0 0 26, -14 -4 41, 2 -1 11, 29 -7 36, 22 -16 41,
        -102 -70 -29, 33 -21 3, -105 122 103, 83 -5 57, -27 32 7, -45 29 19, -47 -13 7, 75 34 25, -8 -3 -7,
        13 -62 -49, 42 -7 0, -8 -61 -33, 160 46 368, 95 86 10, 7 20 30, 3 -11 14, -100 -66 -6, 47 37 0, -42 -89 -32,
        9 17 19, -42 16 7, 11 36 37, 12 -16 -49, 46 -27 57, 10 -18 30, -46 -36 -11, 22 40 -33, -53 -16 7,
        193 224 264, -59 -8 23, -157 -264 -7, -16 17 34, 38 110 200, -1 -10 -8, 11 53 -44, 17 46 35, 9 13 -2,
        -25 -59 -34, -78 29 26, 13 -96 -71
        """
    ),
}


def picture(frame_chw: np.ndarray) -> bytes:
    """One latent frame as a JPEG, its longest side 320 pixels, at most 20 kB."""
    factors = _FACTORS[frame_chw.shape[0]]
    colour_hwc = np.tensordot(frame_chw, factors[:-1], axes=(0, 0)) + factors[-1]
    pixels_hwc = ((colour_hwc + 1) * 127.5).clip(0, 255).astype(np.uint8)
    height, width, _ = pixels_hwc.shape
    scale = _LONGEST_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(pixels_hwc).resize(size, Image.Resampling.BICUBIC)
    # Even noise, the worst a JPEG can be given, is within the limit at the last of these.
    bodies = (_jpeg(image, quality) for quality in _QUALITIES)
    return next((body for body in bodies if len(body) <= _MOST_BYTES), b"") or _jpeg(image, _QUALITIES[-1])


def _jpeg(image: Image.Image, quality: int) -> bytes:
    body = io.BytesIO()
    image.save(body, "JPEG", quality=quality)
    return body.getvalue()


class Previews:
    """Puts pictures into the store, from a thread of its own. Never raises, never waits for the store."""

    def __init__(self, store: Store, key: str, *, interval_s: float = _INTERVAL_S) -> None:
        self._store = store
        self._key = key
        self._interval_s = interval_s
        self._due = 0.0
        self._is_busy = False
        self._has_failed = False
        self._frames: queue.SimpleQueue[tuple[Any, int] | None] = queue.SimpleQueue()
        self.newest: dict[str, Any] | None = None
        """What a progress event says of the picture that is in the store."""
        threading.Thread(target=self._run, name="previews", daemon=True).start()

    def offer(self, clean_bcfhw: Any, *, step: int) -> None:
        """Show this estimate if a picture is due and the last one is stored; else drop it."""
        now = time.monotonic()
        if self._is_busy or now < self._due or clean_bcfhw.shape[1] not in _FACTORS:
            return
        self._is_busy = True
        self._due = now + self._interval_s
        # All that the loop pays: a copy on its own device, which it does not wait for. To bring that to the processor
        # waits until the device is so far; the thread does that.
        self._frames.put((clean_bcfhw[0, :, clean_bcfhw.shape[2] // 2].clone(), step))

    def close(self) -> None:
        """No more pictures; one that is on its way may still arrive, nobody waits for it."""
        self._frames.put(None)

    def _run(self) -> None:
        # Now, while weights are read: it would hold up the step in which the first picture is due.
        Image.preinit()
        while (offered := self._frames.get()) is not None:
            frame_chw, step = offered
            try:
                self.newest = self._put(picture(frame_chw.float().cpu().numpy()), step=step)
            except (CineventError, OSError) as error:
                if not self._has_failed:
                    _log.warning("previews cannot be stored, the run goes on without: %s", error)
                self._has_failed = True
            finally:
                self._is_busy = False

    def _put(self, body: bytes, *, step: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="cinevent-") as folder:
            path = Path(folder) / "preview.jpg"
            path.write_bytes(body)
            self._store.put(self._key, path, content_type="image/jpeg")
        return {"key": self._key, "step": step, "size_bytes": len(body)}
