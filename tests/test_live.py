"""Training straight from videos sees what it would of shards, whoever reads them and whatever fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_shards
import torch
from safetensors.torch import load_file
from training import CutOffError, by_torchrun, cut_off, refused, trained

import models
from jobs import metrics
from jobs.datasets import keep_lists
from jobs.estimate import estimate
from jobs.feed import Feed
from jobs.loop import train
from jobs.materials import Materials, materials
from jobs.metrics import Row
from jobs.recipe import Augment
from jobs.spec import TrainSpec, load
from pipeline.batches import Dataset, LiveDataset
from pipeline.errors import SpecError, StorageError
from pipeline.live import Listing, Videos
from pipeline.picture import Converter
from pipeline.plan import Plan
from pipeline.rows import Rows
from pipeline.sampling import RandomCrops, Sampling
from pipeline.shards import ShardFile, shard_schema
from pipeline.storage import locate
from pipeline.video import Pixels, read_clips, read_view

NAMES = ("h264_bframes.mp4", "mpeg4_bframes.avi", "vp9.webm", "h264.ts", "hevc.mp4", "turned_90.mp4")
CROPS = Sampling(frames=4, height_px=8, width_px=12, random_crops=RandomCrops(count=3))
SAMPLING = CROPS.model_copy(update={"clips": 2})


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def table(clips: Path, tmp_path: Path) -> Path:
    """Six videos of two classes, and one that is none, as a table lists them."""
    (tmp_path / "broken.mp4").write_bytes((clips / NAMES[0]).read_bytes()[:2000])
    rows = [f"{clips / name},{'ab'[k % 2]},in" for k, name in enumerate(NAMES)]
    path = tmp_path / "videos.csv"
    path.write_text(
        "\n".join(["path,labels,split", *rows[:3], "broken.mp4,b,in", *rows[3:], "no.mp4,c,out\n"])
    )
    return path


def spec_of(table: Path, **changed: Any) -> dict[str, Any]:
    sampling = {"frames": 4, "height_px": 8, "width_px": 12, "clips": 2, "random_crops": {"count": 3}}
    data = {"clips": {"videos": str(table), "split": "in", "sampling": sampling}}
    return tiny_shards.spec(table.parent, data=data, **changed)


def checked(values: dict[str, Any]) -> TrainSpec:
    spec = load(values)
    assert isinstance(spec, TrainSpec)
    return spec


def plan() -> Plan:
    return models.plan(tiny_shards.NAME, frames=4, size=(8, 12), tubes=tiny_shards.TUBES)


def sharded(listing: Listing, sampling: Sampling, path: Path) -> Dataset:
    """The same videos in one shard, all views of each."""
    schema = shard_schema(plan(), sampling)
    rows = Rows(schema, plan(), batch_rows=4)
    with pa.ipc.new_file(path, schema) as writer:
        for item in listing.inputs.to_pylist():
            for view in read_clips(locate(item["uri"]), sampling, plan()):
                assert isinstance(view, Pixels)
                if (batch := rows.add(item, "", view, sampling)) is not None:
                    writer.write_batch(batch)
        if (batch := rows.flush()) is not None:
            writer.write_batch(batch)
    return Dataset("clips", [ShardFile(locate(str(path)), None)], plan())


def test_pixels_turns_and_order_are_those_of_shards(clips: Path, tmp_path: Path) -> None:
    whole = tmp_path / "list.txt"
    whole.write_text("\n".join(str(clips / name) for name in NAMES))
    listing = Listing.of(str(whole), "data")
    live = LiveDataset("clips", Videos(listing, CROPS, plan()))
    shards = sharded(listing, CROPS, tmp_path / "a.arrow")
    assert len(live) == len(shards) == len(NAMES)
    assert shards.known["views"].to_pylist() == [3] * len(NAMES)
    for order in (live.order(5), shards.order(5)):
        epochs, numbers = order.at(range(3, 3 + 4 * len(NAMES)))
        read = [dataset.read(numbers, epochs) for dataset in (live, shards)]
        for name, x in read[0].tubes.items():
            assert torch.equal(x, read[1].tubes[name])
        assert len({x.numpy().tobytes() for x in read[0].tubes["tube_2x4x4"]}) > len(NAMES)


def test_any_view_is_the_one_that_all_of_them_have_there(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no other one is made."""
    made: list[Any] = []
    picture = Converter.picture
    monkeypatch.setattr(Converter, "picture", lambda self, *of: made.append(of) or picture(self, *of))
    for sampling in (SAMPLING, CROPS.model_copy(update={"clips": None, "every_seconds": 0.3})):
        for name in ("h264_open_gop.mkv", "h264_variable.mp4"):
            place, there = locate(str(clips / name)), []
            for view in read_clips(place, sampling, plan()):
                assert isinstance(view, Pixels)
                there.append((view.clip.index, view.crop, {c: x.copy() for c, x in view.frames.items()}))
            there.sort(key=lambda one: one[0])  # they come by their last frames
            assert len(there) >= 6
            for k, (_, crop, frames) in enumerate(there):
                told: list[int] = []
                made.clear()
                view = read_view(
                    place, sampling, plan(), lambda count, k=k, told=told: told.append(count) or k
                )
                assert told == [len(there)]
                assert len(made) <= sum(len(plan().frames_of(canvas)) for canvas in frames)
                assert view.crop == crop
                for canvas, x in frames.items():
                    rows = [t // canvas.step for t in plan().frames_of(canvas)]
                    assert np.array_equal(view.frames[canvas][rows], x[rows])


def feed(found: Materials, rank: int = 0, world: int = 1) -> Feed:
    return Feed(found.sources, rank, world, 1, 7, Augment(flip=0.5, mixup=0.4), torch.device("cpu"))


def test_what_is_broken_gives_its_place_to_the_same_one_everywhere(table: Path) -> None:
    found = materials(checked(spec_of(table)))
    live = found.sources["clips"].dataset
    assert len(live) == 7
    found.sources["clips"] = replace(found.sources["clips"], captions=np.arange(7))
    stood_in, whole = [], feed(found)
    for step in range(4):
        ((one,),) = whole.read(step)
        halves = [feed(found, rank, 2).read(step)[0][0] for rank in range(2)]
        assert [name for half in halves for name in half.clip_ids] == one.clip_ids
        assert torch.equal(torch.cat([half.tubes["tube_2x4x4"] for half in halves]), one.tubes["tube_2x4x4"])
        assert torch.equal(torch.cat([half.targets for half in halves]), one.targets)
        assert {failure.uri for failure in one.failures} <= {"broken.mp4"}
        # Others are where they would be, and labels are those of what is seen.
        _, clips = live.order(whole._orders["clips"]._seed).at(range(8 * step, 8 * step + 8))
        wanted = live.known["clip_id"].take(clips).to_pylist()
        places = [k for k, name in enumerate(wanted) if name == "broken.mp4"]
        assert len(places) == len(one.failures)
        assert all(one.clip_ids[k] == name for k, name in enumerate(wanted) if k not in places)
        stood_in += [one.clip_ids[k] for k in places]
        labels = dict(zip(live.known["clip_id"].to_pylist(), live.known["labels"].to_pylist(), strict=True))
        assert [["ab"[k]] for k in one.targets.tolist()] == [labels[name] for name in one.clip_ids]
        assert live.known["clip_id"].take(one.captions.numpy()).to_pylist() == one.clip_ids
    assert len(stood_in) >= 4
    assert len(set(stood_in)) > 1
    straight = list(feed(found).steps(2, 4))
    assert straight[1][0][0].clip_ids == whole.read(3)[0][0].clip_ids


def test_where_nothing_can_be_read_training_ends(table: Path) -> None:
    listing = Listing.of(str(table), "data")
    gone = replace(
        listing, root="/nowhere", inputs=listing.inputs.filter(pa.array([k in (3, 7) for k in range(8)]))
    )
    with pytest.raises(
        StorageError, match=r"/nowhere: 32 of 32 clips cannot be read, the last of them \w+.mp4"
    ):
        LiveDataset("data", Videos(gone, SAMPLING, plan())).read(np.array([0]), np.array([0]))


def test_a_run_is_cut_off_and_goes_on_with_the_list_it_began_with(table: Path) -> None:
    held_out = {"data": {"out": {**spec_of(table)["data"]["clips"], "head": "clips"}}}
    values = spec_of(table, validation=held_out)
    rows, whole = trained(values, "whole")
    assert rows[0]["failed"] >= 13  # once in each of as many epochs
    assert rows[-1]["failed (test)"] == 1
    right = 6 * float(rows[-1]["accuracy/out (test)"])  # of the six that can be read
    assert right == pytest.approx(round(right), abs=1e-5)
    assert [row["uri"] for row in metrics.read(table.parent / "whole", metrics.FAILURES)] == ["broken.mp4"]
    run = table.parent / "cut"
    run.mkdir()
    with cut_off(6), pytest.raises(CutOffError):
        train(checked(values), run, lambda row: None)
    table.write_text(table.read_text() + f"{table.parent / 'broken.mp4'},a,in\n")
    assert len(materials(checked(values)).sources["clips"].dataset) == 8
    (run / "videos").rename(table.parent / "lists")
    with pytest.raises(SpecError, match="data.clips.videos = .*: holds 8 clips, but 7 when step 4 was saved"):
        train(checked(values), run, lambda row: None)
    rmtree(run / "videos")
    (table.parent / "lists").rename(run / "videos")
    resumed: list[Row] = []
    train(checked(values), run, resumed.append)
    assert resumed[0] == {"step": 4, "resumed": 4}
    assert resumed[-1]["accuracy/out (test)"] == rows[-1]["accuracy/out (test)"]
    state = load_file(run / "model" / "model.safetensors")
    for name, x in whole.items():
        torch.testing.assert_close(state[name], x, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_two_processes_come_to_what_one_does(table: Path) -> None:
    recipe = {"steps": 6, "batch": 8, "optimizer": {"name": "sgd", "learning_rate": 0.05}}
    values = spec_of(table, recipe=recipe)
    one, state = trained(values, "one")
    two = by_torchrun(values, table.parent, "two", 2)
    assert [row["failed"] for row in one] == [row["failed"] for row in two]
    assert one[-1]["loss"] == pytest.approx(two[-1]["loss"], rel=1e-4)
    other = load_file(table.parent / "two" / "model" / "model.safetensors")
    for name, x in state.items():
        torch.testing.assert_close(other[name], x, rtol=1e-3, atol=1e-5, msg=name)


def test_what_does_not_fit_is_told(table: Path, clips: Path) -> None:
    good = spec_of(table)
    (data,) = good["data"].values()
    found = estimate(load(good))
    assert (found["clips clips"], found["clips epochs"]) == (7, f"{12 * 8 / 7:.2f}")

    def of(**changed: Any) -> dict[str, Any]:
        return {**good, "data": {"clips": {**data, **changed}}}

    assert (
        refused(of(shards="x"))
        == "data.clips: give either shards (the output folder of a shard job) or videos"
    )
    assert "leave sampling out" in refused(of(shards="x", videos=None))
    assert "data.clips.split = 'test': no clip has it; there are 'in', 'out'" in refused(of(split="test"))
    assert estimate(load(of(split=["in", "out"])))["clips clips"] == 8
    assert "names videos and images" in refused(of(videos=str(clips)))
    nowhere = str(table.parent / "nowhere")
    assert refused(of(videos=nowhere)) == f"data.clips.videos = {nowhere!r}: no such file or folder"
    shards = {"stored": {"shards": tiny_shards.write(table.parent / "stored", 8), "head": "clips"}}
    line = refused({**good, "data": {**shards, "clips": {**data, "sampling": {"frames": 8}}}})
    assert line.startswith(f"data.clips.sampling = '{table}': gives 8 frames of 224x224 px (area)")
    few = refused(of(sampling={**data["sampling"], "frames": 1}))
    assert few.startswith("data.clips.sampling.frames = 1: the model's tubes need at least")
    tested = {"version": 1, "kind": "evaluate", "data": good["data"], "output": good["output"]}
    tested["model"] = {**good["model"], "checkpoint": "x"}
    assert "an evaluation reads shards" in refused(tested)


def test_images_too(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "stills.csv").write_text(f"path,label\n{clips / 'still.jpg'},a\n")
    sampling = {"frames": 4, "height_px": 8, "width_px": 12}
    data = {"stills": {"videos": str(tmp_path / "stills.csv"), "sampling": sampling, "head": "clips"}}
    tiny_shards.write(tmp_path / "clips", 8)
    values = tiny_shards.spec(tmp_path, data={**data, **tiny_shards.spec(tmp_path)["data"]})
    spec = checked(values)
    keep_lists(spec, tmp_path)
    dataset = materials(spec, tmp_path).sources["stills"].dataset
    assert dataset.plan.clip_frames == 1
    batch = dataset.read(np.zeros(2, np.int64), np.zeros(2, np.int64))
    assert batch.tubes["tube_1x4x4"].shape == (2, 1, 2, 3, 1, 4, 4, 3)
    deep = {"name": tiny_shards.NAME, "tubes": [tiny_shards.TUBES[0].model_dump(mode="json")]}
    assert "holds images, and tubevit-nano takes none" in refused({**values, "model": deep})
