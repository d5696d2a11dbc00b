"""Decoded pictures to small RGB ones: crop, scale, colour and rotation (PyAV's filter graphs)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from pipeline.errors import MediaError
from pipeline.media import error_text
from pipeline.plan import CHANNELS, Canvas, Filter
from pipeline.sampling import RandomCrops, Sampling

# swscale's names; bicubic with the kernel of PIL, which CLIP's own preprocessing uses (a = -0.5).
SCALERS: dict[Filter, str] = {
    "area": "area",
    "bilinear": "bilinear",
    "bicubic": "bicubic:param0=0:param1=0.5",
}
MATRIX_WORDS = 9  # of a display matrix, which says how a picture is to be turned
EXIF = 31  # AV_FRAME_DATA_EXIF


@dataclass(frozen=True)
class Orientation:
    """How a stored picture is turned for a viewer: axes swapped first, then flipped."""

    swapped: bool = False
    down: bool = False  # the viewer's top is at the bottom, after swapping
    mirrored: bool = False  # the viewer's left is at the right, after swapping

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """(h, w, 3) as stored -> as seen."""
        seen = picture.transpose(1, 0, 2) if self.swapped else picture
        return seen[:: -1 if self.down else 1, :: -1 if self.mirrored else 1]


def orientation(frame: av.VideoFrame) -> Orientation:
    """From a frame's display matrix, to the nearest right angle; images carry theirs in their EXIF data."""
    matrix: Any = _token(frame).side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32, MATRIX_WORDS)[:5].astype(np.float64)
    # A stored pixel (x, y) is seen at (a x + c y, b x + d y).
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, bool(d < 0), bool(a < 0))
    return Orientation(True, bool(b < 0), bool(c < 0))


def _token(frame: av.VideoFrame) -> av.VideoFrame:
    """A tiny copy with the same side data, but for EXIF's, which PyAV 18.1 has no name for and stumbles over.

    Once its side data is looked at, PyAV 18.1 keeps a frame until Python's garbage collector runs.
    """
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = (
        graph.add("buffer", f"{_geometry(frame)}:time_base=1/1"),
        graph.add("sidedata", f"mode=delete:type={EXIF}"),
        graph.add("scale", "16:16:flags=neighbor"),
        graph.add("buffersink"),
    )
    graph.link_nodes(*nodes).configure()
    graph.vpush(frame)
    token = graph.vpull()
    assert isinstance(token, av.VideoFrame)
    return token


def _geometry(frame: av.VideoFrame) -> str:
    return f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"


@contextmanager
def _blaming_the_file() -> Iterator[None]:
    """What cannot be converted, as a picture tagged with colours that do not exist, is damaged."""
    try:
        yield
    except FFmpegError as error:
        raise MediaError("corrupt", f"a frame cannot be converted: {error_text(error)}") from error


class Converter:
    """Frames to small RGB: crop, scale and colour in one filter graph for each geometry."""

    def __init__(self, sample_aspect_ratio: Fraction, name: str = ""):
        """name: of the file, without its folder: with a seed it decides on random crops."""
        self._aspect, self._name = float(sample_aspect_ratio), name
        # Kept alive on purpose: PyAV 18.1 crashes when a graph goes while one of its frames is in use.
        self._graphs: dict[tuple, av.filter.Graph] = {}
        self._turns: dict[tuple[int, int, int], Orientation] = {}

    def _turn(self, frame: av.VideoFrame) -> Orientation:
        key = (frame.rotation, frame.width, frame.height)
        if key not in self._turns:
            with _blaming_the_file():
                self._turns[key] = orientation(frame)
        return self._turns[key]

    def box(self, frame: av.VideoFrame, sampling: Sampling, crop_index: int) -> tuple[int, int, int, int]:
        """(top, left, height, width): the largest part of the stored picture with the canvas' shape.

        Crops are counted as the viewer sees them, so a turned picture is cropped along its stored axes. A
        random one is a part of such a part, of a shape that differs a little.
        """
        turn = self._turn(frame)
        out_h, out_w = sampling.height_px, sampling.width_px
        if turn.swapped:
            out_h, out_w = out_w, out_h
        across = down = 0.5 if sampling.crops == 1 else crop_index / (sampling.crops - 1)
        wider = size = 1.0
        if sampling.random_crops is not None:
            wider, size, across, down = _drawn(sampling.random_crops, self._name, crop_index)
        scale = min(frame.width * self._aspect / (out_w * wider), frame.height / out_h) * size
        width = max(1, min(frame.width, round(out_w * wider * scale / self._aspect)))
        height = max(1, min(frame.height, round(out_h * scale)))
        flipped_x, flipped_y = (turn.down, turn.mirrored) if turn.swapped else (turn.mirrored, turn.down)
        left = (frame.width - width) * (1 - across if flipped_x else across)
        top = (frame.height - height) * (1 - down if flipped_y else down)
        return int(top) & ~1, int(left) & ~1, height, width  # even: on a chroma sample

    def picture(
        self, frame: av.VideoFrame, canvas: Canvas, sampling: Sampling, crop_index: int
    ) -> np.ndarray:
        """A frame's crop at the canvas' size, the right way up: uint8 (h, w, 3), in the filter's memory.

        Raises:
            MediaError: `corrupt`, for a picture that cannot be converted; damage makes such.
        """
        turn = self._turn(frame)
        key = (
            frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range,
            turn, canvas.frame_size, canvas.filter, crop_index,
        )  # fmt: skip
        height, width = canvas.frame_size[::-1] if turn.swapped else canvas.frame_size
        graph = self._graphs.get(key)
        if graph is None:
            box = self.box(frame, sampling, crop_index)
            with _blaming_the_file():
                graph = self._graphs[key] = _graph(frame, box, (height, width), canvas.filter)
        with _blaming_the_file():
            graph.vpush(frame)
            plane = graph.vpull().planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        stored = rows[:, : width * CHANNELS].reshape(height, width, CHANNELS)
        return turn.apply(stored)


def _drawn(wanted: RandomCrops, name: str, number: int) -> tuple[float, float, float, float]:
    """How much wider than the canvas, of which size, and where, in [0, 1]."""
    rng = np.random.default_rng([wanted.seed, zlib.crc32(name.encode(errors="surrogateescape")), number])
    wider = wanted.aspect ** rng.uniform(-1, 1)
    return wider, rng.uniform(*wanted.area) ** 0.5, *rng.random(2)


def _graph(
    frame: av.VideoFrame, box: tuple[int, int, int, int], size: tuple[int, int], scaler: Filter
) -> av.filter.Graph:
    top, left, height, width = box
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add(
        "buffer",
        f"{_geometry(frame)}:time_base=1/1:pixel_aspect=1/1"
        f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
    )
    nodes = [source]
    if (height, width) != (frame.height, frame.width):
        nodes.append(graph.add("crop", f"{width}:{height}:{left}:{top}:exact=1"))
    nodes.append(graph.add("scale", f"{size[1]}:{size[0]}:flags={SCALERS[scaler]}"))
    # Half the time of scaling straight into packed RGB, which swscale has no vector code for.
    subsampled = frame.format.chroma_width(frame.width) < frame.width
    nodes.append(graph.add("format", f"pix_fmts={'yuv422p' if subsampled else 'gbrp'}"))
    nodes.append(graph.add("scale"))
    nodes.append(graph.add("format", "pix_fmts=rgb24"))
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()
    return graph
