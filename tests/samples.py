"""What several tests are made of: random plans, and how to read a generated clip."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pipeline.plan import Canvas, Plan, Tube


@st.composite
def canvases(draw: st.DrawFn) -> Canvas:
    rows, columns = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2)]))
    return Canvas(
        frames=draw(st.integers(1, 4)) * rows * columns,
        height_px=draw(st.integers(2, 6)) * 2,
        width_px=draw(st.integers(2, 6)) * 2,
        step=draw(st.integers(1, 3)),
        tiles=(rows, columns),
    )


@st.composite
def tubes(draw: st.DrawFn, name: str = "a", canvas: Canvas | None = None) -> Tube:
    canvas = canvas or draw(canvases())
    kernel = tuple(draw(st.integers(1, size)) for size in canvas.shape)
    offset = tuple(draw(st.integers(0, size - k)) for size, k in zip(canvas.shape, kernel, strict=True))
    stride = tuple(draw(st.integers(1, 6)) for _ in range(3))
    return Tube(name=name, kernel=kernel, stride=stride, offset=offset, canvas=canvas)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    canvas = draw(canvases())
    return Plan(tubes=tuple(draw(tubes(name=f"t{i}", canvas=canvas)) for i in range(draw(st.integers(1, 3)))))


def dense(canvas: Canvas, patch: tuple[int, int, int], name: str = "dense") -> Plan:
    """A plan of one tube without gaps or overlap."""
    return Plan(tubes=(Tube(name=name, kernel=patch, stride=patch, canvas=canvas),))


def read_stamp(picture: np.ndarray) -> int:
    """The number that make_clips.stamped drew into a picture, uint8 (96, 128, 3)."""
    bars = [picture[8:56, bar * 16 + 4 : bar * 16 + 12].mean() > 127 for bar in range(8)]
    return sum(int(on) << (7 - bit) for bit, on in enumerate(bars))
