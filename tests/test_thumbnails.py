"""Pictures for a report: what tubes hold is painted where it was cut; what cannot be drawn is left out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import plans, read_stamp

from jobs import thumbnails
from jobs.spec import load
from jobs.thumbnails import GRAY, MOST, Row, draw, paint
from pipeline.commits import File, Run
from pipeline.cut import cut
from pipeline.limits import Limits
from pipeline.plan import Plan
from pipeline.sampling import Sampling
from pipeline.storage import locate

SAMPLING = Sampling(frames=8, stride=1, height_px=96, width_px=128)


@given(plans(), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_tubes_are_painted_where_they_were_cut(plan: Plan, seed: int) -> None:
    (canvas,) = plan.canvases
    frames = np.random.default_rng(seed).integers(0, 256, (canvas.frames, *canvas.frame_size, 3), np.uint8)
    rows, columns = canvas.tiles
    h, w = canvas.frame_size
    images = frames.reshape(-1, rows, columns, h, w, 3).transpose(0, 1, 3, 2, 4, 5).reshape(*canvas.shape, 3)
    held = np.zeros(canvas.shape, bool)
    for tube in plan.tubes:
        places = (
            np.unique(np.add.outer(o, np.arange(k))) for o, k in zip(tube.origins, tube.kernel, strict=True)
        )
        held[np.ix_(*places)] = True
    painted = paint(cut(frames, plan), plan)
    best = held.sum(axis=(1, 2)).argmax()
    np.testing.assert_array_equal(painted, np.where(held[best][..., None], images[best], GRAY))


def embeddings(folder: Path, uris: list[str]) -> list[Row]:
    columns = {"uri": uris, "start_seconds": [0.4] * len(uris), "end_seconds": [1.2] * len(uris)}
    labels = pa.array([["run"]] * len(uris), pa.list_(pa.string()))
    table = pa.table({**columns, "labels": labels})
    pq.write_table(table, folder / "part.parquet", row_group_size=2)
    return [Row(locate(str(folder / "part.parquet")), row) for row in range(len(uris))]


def test_a_frame_of_each_clip_is_read_again_and_what_is_gone_is_left_out(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    uris = ["vp9.webm", "gone.mp4", str(tmp_path / "text.mp4"), "still.jpg", "h264.ts"]
    rows = [*embeddings(tmp_path, uris), Row(locate(str(tmp_path / "gone.parquet")), 0)]
    found = draw(rows, str(clips), SAMPLING, Limits())
    assert [one.uri for one in found] == ["vp9.webm", "still.jpg", "h264.ts"]
    assert [one.labels for one in found] == [("run",)] * 3
    numbers = []
    for one in found:
        assert len(one.jpeg) < 8000
        picture = Image.open(io.BytesIO(one.jpeg))
        assert picture.size == (160, 120)
        numbers.append(read_stamp(np.asarray(picture.resize((128, 96)))))
    assert numbers == [19, 77, 19]  # the middle one of 10 to 29


def test_rows_are_spread_evenly_over_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(str(tmp_path), "f00d")
    counts = {
        "embeddings/a.parquet": 5,
        "embeddings/b.parquet": 0,
        "embeddings/c.parquet": 115,
        "failures/f.parquet": 9,
    }
    run.publish("embed", [File(path, rows, 1, "") for path, rows in counts.items()], [])
    spec = load(
        {"version": 1, "kind": "embed", "input": {"path": "x"}, "model": {"name": "tubevit-tiny"},
         "output": {"path": str(tmp_path)}}
    )  # fmt: skip
    chosen = [(row.file.path.rpartition("/")[2], row.number) for row in thumbnails._spread(spec, run)]
    assert len(chosen) == MOST
    assert chosen == [("c.parquet", 10 * k) for k in range(MOST)]
    run.publish("embed", [File("embeddings/a.parquet", 3, 1, "")], [])
    assert [row.number for row in thumbnails._spread(spec, run)] == [0, 1, 2]
    run.publish("embed", [], [])
    assert thumbnails._spread(spec, run) == []
    assert thumbnails.thumbnails(spec, run, "", SAMPLING) == []  # where there is no Ray
