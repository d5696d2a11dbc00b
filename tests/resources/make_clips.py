"""Generate the clips in this folder: python tests/resources/make_clips.py [FOLDER]

Every frame carries its own number as eight bars, black for 0 and white for 1, most significant bit left, over
the upper two thirds; the lower third is a colour ramp that moves. So a test can read from the pixels which
frame it got. Tests also write clips of their own with `write`, and `scene` is one of soft colours for them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, BAR = 128, 96, 16


def stamped(number: int) -> np.ndarray:
    """uint8 (96, 128, 3): frame `number`, below 256."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(8):
        if number >> (7 - bit) & 1:
            picture[: HEIGHT * 2 // 3, bit * BAR : (bit + 1) * BAR] = 255
    ramp = (np.arange(WIDTH) * 2 + number * 3) % 256
    picture[HEIGHT * 2 // 3 :] = np.stack([ramp, ramp[::-1], np.full(WIDTH, 128)], axis=-1)
    return picture


def scene(number: int) -> np.ndarray:
    """uint8 (96, 128, 3): soft colours that a codec keeps, and three patches of strong ones."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    wave = 128 + 60 * np.sin((x + y + 4 * number) / 20)
    picture = np.stack([40 + x, 40 + y * 1.5, wave], axis=-1).astype(np.uint8)
    for left, colour in ((8, (200, 40, 50)), (48, (40, 180, 60)), (88, (50, 60, 210))):
        picture[16:48, left : left + 32] = colour
    return picture


def write(
    path: Path,
    codec: str,
    pts: list[int],
    time_base: Fraction,
    *,
    options: dict[str, str],
    pixel_format: str = "yuv420p",
    rotation: int = 0,
    pictures: Callable[[int], np.ndarray] = stamped,
    colorspace: int | None = None,
    color_range: int | None = None,
    aspect: Fraction | None = None,
    container_options: dict[str, str] | None = None,
) -> None:
    """Encode frame i = pictures(i) to be shown at pts[i]; colour tags are FFmpeg's numbers."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(25), options=options)
        stream.height, stream.width = pictures(0).shape[:2]
        stream.pix_fmt = pixel_format
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        if color_range is not None:
            stream.codec_context.color_range = color_range
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for number, stamp in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(pictures(number), format="rgb24")
            frame = frame.reformat(
                format=pixel_format, dst_colorspace=colorspace, dst_color_range=color_range
            )
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main(folder: Path) -> None:
    steady = [i * 512 for i in range(60)]
    tick = Fraction(1, 12800)
    small = {"crf": "30", "preset": "veryfast"}
    # B-frames, and a key frame every 16 frames: seeks land in the middle of things.
    write(folder / "h264_bframes.mp4", "libx264", steady, tick, options={**small, "bf": "3", "g": "16"})
    # Open GOPs: leading frames after a key frame refer back past it.
    open_gop = {**small, "bf": "3", "g": "12", "x264-params": "open-gop=1"}
    write(folder / "h264_open_gop.mkv", "libx264", steady, tick, options=open_gop)
    # Variable frame rate: every third frame stays five times as long. It starts 1.5 s late.
    gaps = np.cumsum([0] + [2560 if i % 3 == 0 else 512 for i in range(59)]) + 19200
    write(
        folder / "h264_variable.mp4", "libx264", gaps.tolist(), tick, options={**small, "bf": "2", "g": "20"}
    )
    write(folder / "h264.ts", "libx264", steady, tick, options={**small, "bf": "2", "g": "16"})
    write(folder / "raw.h264", "libx264", steady[:24], tick, options={**small, "bf": "2", "g": "8"})
    write(folder / "vp9.webm", "libvpx-vp9", steady, tick, options={"crf": "40", "b": "0", "g": "20"})
    # Frames that are only referred to, never shown.
    hidden = {"crf": "20", "b": "200k", "g": "30", "auto-alt-ref": "1", "lag-in-frames": "16"}
    write(folder / "vp8_hidden.webm", "libvpx", steady, tick, options=hidden)
    write(
        folder / "mpeg4_bframes.avi", "mpeg4", steady[:40], Fraction(1, 12800), options={"bf": "2", "g": "12"}
    )
    write(
        folder / "av1.mkv", "libsvtav1", steady[:40], tick, options={"crf": "45", "preset": "10", "g": "20"}
    )
    hevc = {"crf": "32", "preset": "veryfast", "x265-params": "log-level=none:keyint=16:bframes=3:pools=1"}
    write(folder / "hevc.mp4", "libx265", steady[:40], tick, options=hevc)
    turned = {**small, "g": "16"}
    write(folder / "turned_90.mp4", "libx264", steady[:20], tick, options=turned, rotation=90)
    write(folder / "turned_180.mp4", "libx264", steady[:20], tick, options=turned, rotation=180)
    write(folder / "one_frame.mp4", "libx264", [0], tick, options=small)
    with av.open(str(folder / "still.jpg"), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj444p"
        frame = av.VideoFrame.from_ndarray(stamped(77), format="rgb24").reformat(format="yuvj444p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    target.mkdir(parents=True, exist_ok=True)
    main(target)
