"""Decoded pictures to small RGB ones: crop, scale, colour and rotation (PyAV's filter graphs)."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from pipeline.plan import CHANNELS, Canvas
from pipeline.sampling import Sampling


class Converter:
    """Frames to small RGB: crop, scale and colour in one filter graph for each geometry."""

    def __init__(self, sample_aspect_ratio: Fraction):
        self._aspect = float(sample_aspect_ratio)
        # Kept alive on purpose: PyAV 18.1 crashes when a graph goes while one of its frames is in use.
        self._graphs: dict[tuple, av.filter.Graph] = {}

    def box(self, frame: av.VideoFrame, sampling: Sampling, crop_index: int) -> tuple[int, int, int, int]:
        """(top, left, height, width): the largest part of the stored picture with the canvas' shape.

        Crops are counted as the viewer sees them, so a rotated picture is cropped along its stored axes.
        """
        quarter_turns = frame.rotation // 90 % 4
        out_h, out_w = sampling.height_px, sampling.width_px
        if quarter_turns % 2:
            out_h, out_w = out_w, out_h
        scale = min(frame.width * self._aspect / out_w, frame.height / out_h)
        width = max(1, min(frame.width, round(out_w * scale / self._aspect)))
        height = max(1, min(frame.height, round(out_h * scale)))
        along = 0.5 if sampling.crops == 1 else crop_index / (sampling.crops - 1)
        left = (frame.width - width) * (1 - along if quarter_turns in (1, 2) else along)
        top = (frame.height - height) * (1 - along if quarter_turns in (2, 3) else along)
        return int(top) & ~1, int(left) & ~1, height, width  # even: on a chroma sample

    def picture(
        self, frame: av.VideoFrame, canvas: Canvas, sampling: Sampling, crop_index: int
    ) -> np.ndarray:
        """A frame's crop at the canvas' size, the right way up: uint8 (h, w, 3)."""
        key = (
            frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range,
            frame.rotation, canvas.frame_size, canvas.filter, crop_index,
        )  # fmt: skip
        quarter_turns = frame.rotation // 90 % 4
        height, width = canvas.frame_size[::-1] if quarter_turns % 2 else canvas.frame_size
        graph = self._graphs.get(key)
        if graph is None:
            box = self.box(frame, sampling, crop_index)
            graph = self._graphs[key] = _graph(frame, box, (height, width), canvas.filter)
        graph.vpush(frame)
        plane = graph.vpull().planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        stored = rows[:, : width * CHANNELS].reshape(height, width, CHANNELS)
        return np.rot90(stored, quarter_turns).copy()


def _graph(
    frame: av.VideoFrame, box: tuple[int, int, int, int], size: tuple[int, int], scaler: str
) -> av.filter.Graph:
    top, left, height, width = box
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1:pixel_aspect=1/1"
        f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
    )
    nodes = [source]
    if (height, width) != (frame.height, frame.width):
        nodes.append(graph.add("crop", f"{width}:{height}:{left}:{top}:exact=1"))
    nodes.append(graph.add("scale", f"{size[1]}:{size[0]}:flags={scaler}"))
    nodes.append(graph.add("format", "pix_fmts=rgb24"))
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()
    return graph
