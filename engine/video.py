"""Video: frames become an mp4 that a browser plays while it loads, and a poster.

In: uint8 frames, as they are made. Out: files, and what is in them. The same frames and crf give the same bytes on one
machine.
"""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from PIL import Image

# mbtree off: with it x264 (core 165) reads memory that it has not written, and the same frames gave other bytes in 16
# of 39 trials.
_OPTIONS = {"preset": "medium", "mbtree": "0"}
# x264's bytes depend on the number of threads (not on their timing): fixed, or another machine would give others.
_THREADS = 4
# H.264's number of BT.709, the colours of HD video; without it players guess.
_BT709 = 1
_POSTER_QUALITY = 85


def write_video(chunks: Iterable[np.ndarray], mp4: Path, poster: Path, *, num_frames: int, fps: int, crf: int) -> None:
    """Write chunks ([f, H, W, 3], uint8) as H.264 in yuv420p, with the index before the data; and the middle frame.

    Frames are taken as they are encoded; none is kept but the few that x264 looks at together. The poster is the middle
    one: the first is often the least telling.
    """
    frames = chain.from_iterable(chunks)
    first = next(frames)
    with av.open(str(mp4), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = _add_stream(container, fps=fps, crf=crf, size=first.shape[:2])
        for number, frame in enumerate(chain([first], frames)):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(picture))
            if number == num_frames // 2:
                Image.fromarray(frame).save(poster, "JPEG", quality=_POSTER_QUALITY)
        container.mux(stream.encode(None))


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


def _add_stream(container: OutputContainer, *, fps: int, crf: int, size: tuple[int, ...]) -> VideoStream:
    stream = container.add_stream("libx264", rate=fps, options={**_OPTIONS, "crf": str(crf)})
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    codec = stream.codec_context
    codec.thread_count = _THREADS
    codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
    codec.color_range = ColorRange.MPEG.value
    return stream
