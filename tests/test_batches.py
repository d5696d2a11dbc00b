"""Batches hold exactly the pixels of the clips that were asked for, from whichever shards they lie in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.batches import Dataset
from pipeline.errors import SpecError
from pipeline.order import turn
from pipeline.plan import Canvas, Plan, Tube
from pipeline.sampling import Sampling
from pipeline.shards import ShardFile, shard_schema
from pipeline.storage import locate

CANVAS = Canvas(frames=4, height_px=8, width_px=12)
FINE = Tube(name="fine", kernel=(1, 4, 4), stride=(1, 4, 4), canvas=CANVAS)
DEEP = Tube(name="deep", kernel=(4, 8, 4), stride=(4, 8, 4), canvas=CANVAS)
PLAN = Plan(tubes=(FINE, DEEP))
SPARSE = Plan(tubes=(FINE.model_copy(update={"name": "sparse", "stride": (2, 4, 8), "offset": (1, 4, 0)}),))


def write(folder: Path, shards: list[list[int]], batch_rows: int = 3) -> list[ShardFile]:
    """Shards whose clips have so many views each; a view's every pixel is its number among all views."""
    schema, files, view = shard_schema(PLAN, Sampling()), [], 0
    for number, clips in enumerate(shards):
        rows = [(clip, k) for clip, views in enumerate(clips) for k in range(views)]
        path = folder / f"{number}.arrow"
        with pa.ipc.new_file(path, schema) as writer:
            for start in range(0, len(rows), batch_rows):
                some = rows[start : start + batch_rows]
                values = np.arange(view, view + len(some), dtype=np.uint8)
                columns = {
                    "clip_id": [f"{number}.mp4#{clip}-9/{k}" for clip, k in some],
                    "split": ["out" if clip % 3 == 2 else "in" for clip, _ in some],
                    "labels": [[f"class {clip % 2}"] for clip, _ in some],
                }
                arrays = [
                    pa.array(columns.get(field.name, [None] * len(some)), field.type)
                    for field in schema if field.name not in ("fine", "deep")
                ]  # fmt: skip
                for tube in PLAN.tubes:
                    pixels = np.empty((len(some), *tube.shape), np.uint8)
                    pixels[:] = values.reshape(-1, *(1,) * len(tube.shape))
                    arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(pixels))
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
                view += len(some)
        files.append(ShardFile(locate(str(path)), None))
    return files


SHARDS = [[2, 2, 1], [1], [3, 1, 1, 2, 1, 2]]
FIRST = [0, 2, 4, 5, 6, 9, 10, 11, 13, 14]  # view of each clip
VIEWS = [2, 2, 1, 1, 3, 1, 1, 2, 1, 2]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset("some", write(tmp_path, SHARDS), PLAN)


def test_a_clip_is_all_views_of_the_same_frames(dataset: Dataset) -> None:
    assert len(dataset) == 10
    assert dataset.known["views"].to_pylist() == VIEWS
    for clip, (first, count) in enumerate(zip(FIRST, VIEWS, strict=True)):
        shards, rows, _ = dataset.views(np.array([clip]))
        tubes = dataset.rows(shards, rows)
        assert tubes["fine"].shape == (count, *FINE.shape)
        assert [int(view.unique()) for view in tubes["deep"]] == list(range(first, first + count))


def test_views_say_whose_they_are(dataset: Dataset) -> None:
    shards, rows, of_clip = dataset.views(np.array([4, 0, 9]))
    assert of_clip.tolist() == [0, 0, 0, 1, 1, 2, 2]
    shown = [int(pixels.unique()) for pixels in dataset.rows(shards, rows)["deep"]]
    assert shown == [6, 7, 8, 0, 1, 14, 15]


def test_any_clips_in_any_order(dataset: Dataset) -> None:
    rng = np.random.default_rng(0)
    for epoch in range(20):
        clips = rng.integers(0, 10, 7)
        batch = dataset.read(clips, np.full(7, epoch))
        assert batch.tubes["fine"].dtype == torch.uint8
        shown = [int(pixels.unique()) for pixels in batch.tubes["fine"]]
        assert shown == [int(pixels.unique()) for pixels in batch.tubes["deep"]]
        for clip, view in zip(clips, shown, strict=True):
            assert FIRST[clip] <= view < FIRST[clip] + VIEWS[clip]


def test_views_take_turns(dataset: Dataset) -> None:
    """Which one is a matter of the clip and the epoch, each as often as the others."""
    epochs = np.arange(3000)
    for clip, views in enumerate(VIEWS):
        turns = turn(np.full(3000, clip), epochs, np.full(3000, views))
        counts = np.bincount(turns, minlength=views)
        assert (np.abs(counts - 3000 / views) < 150).all()
    pair = [turn(np.full(3000, clip), epochs, np.full(3000, 2)) for clip in (0, 1)]
    assert 0.4 < (pair[0] == pair[1]).mean() < 0.6


def test_a_split_and_a_smaller_plan(tmp_path: Path) -> None:
    files = write(tmp_path, SHARDS)
    dataset = Dataset("some", files, SPARSE, split="in")
    assert dataset.known["split"].unique().to_pylist() == ["in"]
    assert len(dataset) == 7
    assert dataset.order(0).clips == 7
    batch = dataset.read(np.array([4]), np.array([0]))
    assert batch.tubes["sparse"].shape == (1, 2, 1, 2, 1, 4, 4, 3)
    assert int(batch.tubes["sparse"].unique()) == 9  # the second clip of the last shard
    with pytest.raises(SpecError, match="there are 'in', 'out'"):
        Dataset("some", files, PLAN, split="test")


def test_several_splits_are_their_clips_together(tmp_path: Path) -> None:
    files = write(tmp_path, SHARDS)
    assert len(Dataset("some", files, PLAN, split=("out", "in"))) == 10
    assert len(Dataset("some", files, PLAN, split=("out",))) == 3
    with pytest.raises(SpecError, match="some.split = 'test': no clip has it; there are 'in', 'out'"):
        Dataset("some", files, PLAN, split=("in", "test"))


def test_shards_that_lack_a_tube_are_refused(tmp_path: Path) -> None:
    more = Plan(tubes=(FINE.model_copy(update={"kernel": (1, 2, 2)}),))
    with pytest.raises(SpecError, match="cut shards for this model"):
        Dataset("some", write(tmp_path, [[1]]), more)
