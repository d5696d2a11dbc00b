"""Shards: any pyarrow reads them, ours maps them without a copy, and plans are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from samples import dense

from pipeline.batches import to_torch
from pipeline.cut import cut
from pipeline.errors import SpecError
from pipeline.plan import Canvas, Plan, Tube
from pipeline.rows import Rows
from pipeline.sampling import Sampling
from pipeline.shards import ShardReader, open_dataset, shard_schema, tube_arrays
from pipeline.storage import locate
from pipeline.video import Pixels, read_clips

CANVAS = Canvas(frames=4, height_px=24, width_px=32)
FINE = Tube(name="fine", kernel=(1, 8, 8), stride=(1, 8, 8), canvas=CANVAS)
COARSE = Tube(name="coarse", kernel=(1, 8, 8), stride=(2, 16, 16), offset=(1, 0, 8), canvas=CANVAS)
DEEP = Tube(name="deep", kernel=(4, 8, 8), stride=(4, 8, 8), canvas=CANVAS)
PLAN = Plan(tubes=(FINE, DEEP))
SAMPLING = Sampling(frames=4, stride=2, clips=5, height_px=24, width_px=32)
ITEM: dict[str, Any] = {
    "uri": "h264_bframes.mp4", "start_seconds": None, "end_seconds": None, "labels": ["a", "b"],
    "caption": "bars", "split": "train", "group": None, "speaker": 7,
}  # fmt: skip


@pytest.fixture
def shard(clips: Path, tmp_path: Path) -> Path:
    """Five views in batches of two."""
    schema = shard_schema(PLAN, SAMPLING, [pa.field("speaker", pa.int64())])
    rows = Rows(schema, PLAN, batch_rows=2)
    path = tmp_path / "x.arrow"
    with pa.ipc.new_file(path, schema) as writer:
        for view in read_clips(locate(str(clips / "h264_bframes.mp4")), SAMPLING, PLAN):
            assert isinstance(view, Pixels)
            if (batch := rows.add(ITEM, "1-2", view, SAMPLING)) is not None:
                writer.write_batch(batch)
        if (batch := rows.flush()) is not None:
            writer.write_batch(batch)
    return path


def views(clips: Path) -> list[dict[str, np.ndarray]]:
    found = read_clips(locate(str(clips / "h264_bframes.mp4")), SAMPLING, PLAN)
    return [cut(view.frames, PLAN) for view in found if isinstance(view, Pixels)]


def test_plain_pyarrow_reads_everything(shard: Path, clips: Path) -> None:
    table = pa.ipc.open_file(str(shard)).read_all()
    assert table.num_rows == 5
    assert table.schema.field("fine").type == pa.fixed_shape_tensor(pa.uint8(), FINE.shape)
    assert b"tubelet.plan" in table.schema.metadata
    for name in ("fine", "deep"):
        pixels = table[name].combine_chunks().to_numpy_ndarray()
        np.testing.assert_array_equal(pixels, np.stack([view[name] for view in views(clips)]))
    row = table.select(["clip_id", "labels", "caption", "speaker", "time_base", "view_index"]).to_pylist()[1]
    assert row["clip_id"].startswith("h264_bframes.mp4#")
    assert row["labels"] == ["a", "b"]
    assert (row["caption"], row["speaker"], row["view_index"]) == ("bars", 7, 1)
    assert len(set(table["clip_id"].to_pylist())) == 5


def test_reading_copies_nothing(shard: Path) -> None:
    reader = ShardReader(str(shard))
    before = pa.total_allocated_bytes()
    tensors = to_torch(reader.rows(0, 2), reader.plan)
    arrays = tube_arrays(reader.rows(0, 2), reader.plan)
    assert pa.total_allocated_bytes() == before
    assert tensors["fine"].shape == (2, *FINE.shape)
    assert tensors["fine"].data_ptr() == arrays["fine"].ctypes.data
    assert not arrays["fine"].flags.writeable
    np.testing.assert_array_equal(tensors["fine"].numpy(), arrays["fine"])


def test_rows_may_cross_batches(shard: Path, clips: Path) -> None:
    reader = ShardReader(str(shard))
    tubes = reader.tubes(PLAN, 1, 5)
    np.testing.assert_array_equal(tubes["deep"], np.stack([view["deep"] for view in views(clips)])[1:5])


def test_a_contained_plan_is_a_view(shard: Path, clips: Path) -> None:
    reader = ShardReader(str(shard))
    wanted = Plan(tubes=(COARSE,))
    tubes = reader.tubes(wanted, 2, 4)["coarse"]
    found = read_clips(locate(str(clips / "h264_bframes.mp4")), SAMPLING, wanted)
    expected = [cut(view.frames, wanted)["coarse"] for view in found if isinstance(view, Pixels)]
    np.testing.assert_array_equal(tubes, np.stack(expected)[2:4])
    tensor = to_torch(reader.rows(2, 4), reader.plan, wanted)["coarse"]
    assert torch.equal(tensor, torch.tensor(tubes))
    fine = reader.tubes(PLAN, 2, 4)["fine"]
    assert np.shares_memory(tubes, fine)


def test_a_plan_that_is_not_there_is_refused_with_both_shown(shard: Path) -> None:
    other = dense(CANVAS, (2, 8, 8), "other")
    with pytest.raises(SpecError) as caught:
        ShardReader(str(shard)).tubes(other)
    assert "fine 1x8x8/1x8x8" in str(caught.value)
    assert "other 2x8x8/2x8x8" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dataset_is_one_list_of_rows(shard: Path) -> None:
    dataset = open_dataset(str(shard.parent))
    assert len(dataset) == 5
    row = dataset[4]
    assert row["view_index"] == 4
    assert row["tubes"]["deep"].shape == DEEP.shape
    with pytest.raises(IndexError):
        dataset[5]


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_what_is_no_shard_says_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "y.arrow"
    if content is None:
        with pa.ipc.new_file(path, pa.schema([("a", pa.int64())])):
            pass
    else:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=r"input.shards = .*(cannot be opened|not a shard)"):
        ShardReader(str(path))


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no shards in it"):
        open_dataset(str(tmp_path))


def test_an_input_column_named_like_a_tube_is_refused() -> None:
    with pytest.raises(SpecError, match="a column of the input has a tube's name"):
        shard_schema(PLAN, SAMPLING, [pa.field("fine", pa.int64())])
