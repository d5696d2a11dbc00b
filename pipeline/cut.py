"""Frames of a clip + plan -> {tube name: uint8}. Nothing but strided copies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.plan import CHANNELS, Canvas, Plan


def cut(
    frames: np.ndarray | Mapping[Canvas, np.ndarray],
    plan: Plan,
    out: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Cut a clip's frames into the tubes of a plan.

    Args:
        frames: uint8 RGB (canvas.frames, h, w, 3) for each canvas of the plan, h and w being
            `canvas.frame_size`; a bare array where the plan has one canvas.
        out: where to write, {tube name: uint8 of `tube.shape`}; fresh arrays otherwise.

    Returns:
        {tube name: uint8 (n_t, n_h, n_w, kT, kH, kW, 3)}.
    """
    if isinstance(frames, np.ndarray):
        if len(plan.canvases) != 1:
            raise ValueError(f"the plan has {len(plan.canvases)} canvases; give frames for each of them")
        frames = {plan.canvases[0]: frames}
    tiled = {canvas: _tile(frames[canvas], canvas) for canvas in plan.canvases}
    tubes = {}
    for tube in plan.tubes:
        windows = sliding_window_view(tiled[tube.canvas], tube.kernel, axis=(0, 1, 2))
        t, h, w = (slice(r.start, r[-1] + 1, r.step) for r in tube.origins)
        places = np.moveaxis(windows[t, h, w], 3, -1)  # channels last again
        tubes[tube.name] = np.empty(tube.shape, np.uint8) if out is None else out[tube.name]
        np.copyto(tubes[tube.name], places)
    return tubes


def _tile(frames: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Lay each group of rows x columns consecutive frames into one image, row-major."""
    expected = (canvas.frames, *canvas.frame_size, CHANNELS)
    if frames.shape != expected or frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, but the canvas takes uint8 {expected}")
    rows, columns = canvas.tiles
    if (rows, columns) == (1, 1):
        return frames
    h, w = canvas.frame_size
    return (
        frames.reshape(-1, rows, columns, h, w, CHANNELS)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(*canvas.shape, CHANNELS)
    )
