"""What several tests are made of: random plans, generated clips as they are read, small jobs, commands."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

import models
from jobs.__main__ import main
from pipeline.corpus import Media
from pipeline.limits import Limits
from pipeline.plan import Canvas, Plan, Tube
from pipeline.sampling import Sampling
from pipeline.stages import Cutting
from pipeline.video import Lost, Pixels


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


# What the generated clips are read as whole: four frames at their own size, in one piece each.
WHOLE = Canvas(frames=4, height_px=96, width_px=128)
WHOLE_PLAN = dense(WHOLE, (1, 96, 128))


def stamps(view: Pixels | Lost) -> list[int]:
    """The numbers in the four frames of a view that was cut by WHOLE_PLAN."""
    assert isinstance(view, Pixels), view
    return [read_stamp(picture) for picture in view.frames[WHOLE]]


# Clips that the smallest model takes.
SMALL = {"frames": 20, "stride": 1, "clips": 2, "height_px": 64, "width_px": 96}


# Three such clips show all of 60 frames, three times each.
CROPPED = {"frames": 20, "stride": 1, "clips": 3, "crops": 3, "height_px": 64, "width_px": 96}


def cutting_of(folder: Path, sampling: Sampling) -> Cutting:
    """What stages need to know to decode files of a folder for the smallest model."""
    size = (sampling.height_px, sampling.width_px)
    video = models.plan("tubevit-tiny", frames=sampling.frames, size=size)
    plans: dict[Media, Any] = {"video": video, "image": video.image()}
    return Cutting(str(folder), sampling, plans, (), 3, 4, Limits(), None)


def unit_of(*names: str, media: str = "video") -> pa.Table:
    """Unit 7 of a plan, with some files in it."""
    nothing = dict.fromkeys(("start_seconds", "end_seconds", "version", "stop_clip"))
    items = [{"uri": name, "first_clip": 0, **nothing} for name in names]
    return pa.Table.from_pylist([{"unit": 7, "media": media, "clips": 9, "items": items}])


def embed_spec(corpus: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A small embed job, as a spec file would hold it."""
    return {
        "version": 1, "kind": "embed", "input": {"path": str(corpus)}, "sampling": SMALL,
        "model": {"name": "tubevit-tiny", "batch_views": 4}, "output": {"path": str(output)}, **changes,
    }  # fmt: skip


def tubelet(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run a command; gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["tubelet", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def rows(folder: Path) -> dict[str, np.ndarray]:
    """{clip_id: embedding} of a run, each id once."""
    table = pq.read_table(folder / "embeddings")
    ids = table["clip_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    matrix = np.stack(table["embedding"].to_numpy())
    return dict(zip(ids, matrix, strict=True))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
