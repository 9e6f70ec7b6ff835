"""Video: frames become an mp4 that a browser plays while it loads, and a poster.

In: uint8 frames. Out: files, and what is in them. The same frames give the same bytes on one machine.
"""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

# crf 18 looks like the frames themselves. mbtree off: with it x264 (core 165) reads memory that it has not written, and
# the same frames gave other bytes in 16 of 39 trials.
_OPTIONS = {"crf": "18", "preset": "medium", "mbtree": "0"}
# x264's bytes depend on the number of threads (not on their timing): fixed, or another machine would give others.
_THREADS = 4
# H.264's number of BT.709, the colours of HD video; without it players guess.
_BT709 = 1
_POSTER_QUALITY = 85


def write_mp4(frames: Sequence[np.ndarray] | np.ndarray, path: Path, *, fps: int) -> None:
    """Write frames ([H, W, 3], uint8) as H.264 in yuv420p, with the index before the data."""
    height, width, _ = frames[0].shape
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.thread_count = _THREADS
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = ColorRange.MPEG.value
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def write_poster(frames: Sequence[np.ndarray] | np.ndarray, path: Path) -> None:
    """Write the middle frame as a JPEG: the first one is often the least telling."""
    Image.fromarray(frames[len(frames) // 2]).save(path, "JPEG", quality=_POSTER_QUALITY)


def probe(path: Path) -> dict[str, int | float]:
    """What the mp4 at `path` holds, as its own header says."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        assert stream.duration is not None
        assert stream.time_base is not None
        return {
            "width": stream.width,
            "height": stream.height,
            "num_frames": stream.frames,
            "fps": int(stream.average_rate),
            "duration_s": float(stream.duration * stream.time_base),
        }
