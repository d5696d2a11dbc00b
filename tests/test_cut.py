"""Cutting copies the right pixels to the right places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from samples import dense, plans

from pipeline.cut import cut
from pipeline.plan import Canvas, Plan


@settings(max_examples=60)
@given(plans())
def test_every_tube_equals_a_plain_slice_of_its_canvas(plan: Plan) -> None:
    rng = np.random.default_rng(0)
    frames = {c: rng.integers(0, 256, (c.frames, *c.frame_size, 3), np.uint8) for c in plan.canvases}
    tubes = cut(frames, plan)
    for tube in plan.tubes:
        picture = tile(frames[tube.canvas], tube.canvas)
        k_t, k_h, k_w = tube.kernel
        for i, t in enumerate(tube.origins[0]):
            for j, h in enumerate(tube.origins[1]):
                for k, w in enumerate(tube.origins[2]):
                    expected = picture[t : t + k_t, h : h + k_h, w : w + k_w]
                    np.testing.assert_array_equal(tubes[tube.name][i, j, k], expected)


def tile(frames: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Framesets, frame by frame."""
    rows, columns = canvas.tiles
    height, width = canvas.frame_size
    out = np.zeros((*canvas.shape, 3), np.uint8)
    for number, frame in enumerate(frames):
        image, cell = divmod(number, rows * columns)
        row, column = divmod(cell, columns)
        out[image, row * height : (row + 1) * height, column * width : (column + 1) * width] = frame
    return out


def test_dense_tubes_reassemble_a_canvas_that_is_not_square() -> None:
    canvas = Canvas(frames=4, height_px=6, width_px=10)
    frames = np.random.default_rng(1).integers(0, 256, (4, 6, 10, 3), np.uint8)
    tubes = cut(frames, dense(canvas, (2, 3, 5)))["dense"]
    assert tubes.shape == (2, 2, 2, 2, 3, 5, 3)
    np.testing.assert_array_equal(tubes.transpose(0, 3, 1, 4, 2, 5, 6).reshape(4, 6, 10, 3), frames)


def test_wrong_frames_are_refused() -> None:
    plan = dense(Canvas(frames=4, height_px=6, width_px=10), (2, 3, 5))
    with pytest.raises(
        ValueError, match=r"uint8 \(4, 10, 6, 3\), but the canvas takes uint8 \(4, 6, 10, 3\)"
    ):
        cut(np.zeros((4, 10, 6, 3), np.uint8), plan)
