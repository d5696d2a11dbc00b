"""Decoding for training by Ray's tasks: what one process would read, in its order, whatever they die of."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import tiny_shards
import torch
from safetensors.torch import load_file
from training import trained

import jobs
import models
from jobs import metrics
from jobs.decoders import Decoders
from jobs.feed import Request, read_here
from jobs.room import Node, Room
from jobs.spec import TrainSpec, load
from jobs.train import decoders
from jobs.workers import WorkerError
from pipeline.batches import LiveDataset
from pipeline.errors import Failure, SpecError, StorageError
from pipeline.live import Listing, Tubes, Videos
from pipeline.pools import StalledError
from pipeline.sampling import RandomCrops, Sampling

SAMPLING = Sampling(frames=4, height_px=8, width_px=12, random_crops=RandomCrops(count=3))
NAMES = ("h264_bframes.mp4", "vp9.webm", "broken.mp4", "mpeg4_bframes.avi", "h264.ts", "hevc.mp4")


@pytest.fixture
def table(clips: Path, tmp_path: Path) -> Path:
    (tmp_path / "broken.mp4").write_bytes((clips / NAMES[0]).read_bytes()[:2000])
    rows = [f"{name if name == 'broken.mp4' else clips / name},{'ab'[k % 2]}" for k, name in enumerate(NAMES)]
    path = tmp_path / "videos.csv"
    path.write_text("\n".join(["path,label", *rows, ""]))
    return path


# Within functions, so that workers get it by value: they cannot import this file.
def deadly(listing: Listing, notes: Path) -> Videos:
    class Deadly(Videos):
        """Whose clip 1 takes its process down each time, and clip 4 the first time."""

        def cut(self, clip: int, epoch: int) -> Tubes | Failure:
            tries = notes / f"{clip}-{epoch}"
            with tries.open("a") as file:
                file.write("x")
            assert "torch" not in sys.modules
            if clip == 1 or (clip == 4 and len(tries.read_text()) == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().cut(clip, epoch)

    plan = models.plan(tiny_shards.NAME, frames=4, size=(8, 12), tubes=tiny_shards.TUBES)
    return Deadly(listing, SAMPLING, plan)


def test_tasks_read_what_one_process_would_and_outlive_deadly_clips(
    local_ray: None, table: Path, tmp_path: Path
) -> None:
    listing = Listing.of(str(table), "data")
    plan = models.plan(tiny_shards.NAME, frames=4, size=(8, 12), tubes=tiny_shards.TUBES)
    here = LiveDataset("data", Videos(listing, SAMPLING, plan))
    (tmp_path / "notes").mkdir()
    there = LiveDataset("data", deadly(listing, tmp_path / "notes"))
    order = here.order(0)
    # Fewer clips a batch than are begun at a time, and more.
    starts = [0, 3, 6, 20]
    places = [order.at(range(start, stop)) for start, stop in pairwise(starts)]
    read = list(read_here(Request(here, clips, epochs) for epochs, clips in places))
    decoded = list(Decoders(2, {}, 60)(Request(there, clips, epochs) for epochs, clips in places))
    assert len(decoded) == len(read) == 3
    reasons: Counter[str] = Counter()
    for one, other, (_, clips) in zip(read, decoded, places, strict=True):
        unhurt = clips != 1
        # What stands in for another is the same one, unless that is deadly itself.
        same = unhurt & ((one.clips == other.clips) | (one.clips == 1))
        assert same.tolist() == unhurt.tolist()
        assert 1 not in other.clips
        for name, x in one.tubes.items():
            alike = torch.from_numpy(one.clips == other.clips)
            assert torch.equal(x[alike], other.tubes[name][alike])
        reasons.update((failure.reason, failure.uri.rpartition("/")[2]) for failure in other.failures)
    assert reasons[("crashed", "vp9.webm")] >= 3
    assert {name for reason, name in reasons if reason != "crashed"} == {"broken.mp4"}
    tries = {path.name: len(path.read_text()) for path in (tmp_path / "notes").iterdir()}
    # Not three in each epoch, but once, and of a second one that was under way then.
    assert 3 <= sum(count for name, count in tries.items() if name.startswith("1-")) <= 6
    assert any(name.startswith("4-") for name in tries)


def test_what_ends_a_job_is_a_line(local_ray: None, table: Path) -> None:
    plan = models.plan(tiny_shards.NAME, frames=4, size=(8, 12), tubes=tiny_shards.TUBES)
    clips = np.zeros(1, np.int64)

    class Full(Videos):
        """On a machine that has no room left, say."""

        def cut(self, clip: int, epoch: int) -> Tubes | Failure:
            raise StorageError("/tmp: no room")

    videos = Videos(Listing.of(str(table), "data"), SAMPLING, plan)
    full = LiveDataset("data", Full(videos.listing, SAMPLING, plan))
    with pytest.raises(StorageError) as caught:
        next(Decoders(1, {}, 60)(iter([Request(full, clips, clips)])))
    assert str(caught.value) == "/tmp: no room"
    nowhere = Decoders(1, {"role": "nobody"}, 2)
    with pytest.raises(StalledError, match=r"no clip was decoded for 2 s \(ray.wait_seconds\)"):
        next(nowhere(iter([Request(LiveDataset("data", videos), clips, clips)])))


def test_they_have_the_cores_that_workers_leave() -> None:
    def asked(room: Room, **resources: Any) -> int:
        data, wanted = {"clips": {"videos": "/videos"}}, {"workers": 2, **resources}
        spec = load(tiny_shards.spec(Path("/x"), data=data, resources=wanted))
        assert isinstance(spec, TrainSpec)
        return decoders(spec, room)

    here = Room(1, 4.0, 0.0)
    with pytest.raises(SpecError, match="resources.decode.actors = 3: the workers leave room for 2;"):
        asked(here, decode={"actors": 3})
    assert asked(Room(1, 5.0, 0.0), decode={"actors": 3}) == 3
    assert asked(replace(here, may_grow=True), decode={"actors": 3}) == 3
    assert asked(Room(1, 16.0, 0.0)) == 14
    assert asked(Room(1, 2.0, 0.0)) == 1  # that of Ray's own small tasks
    apart, beside = {"decode": {"labels": {"role": "a"}}, "labels": {"role": "b"}}, {"role": "a"}
    nodes = Room.of([Node(8.0, 0.0, {"role": "a"}), Node(4.0, 0.0, {"role": "b"})], may_grow=False)
    assert asked(nodes, **apart) == 8
    assert asked(nodes, **apart | {"labels": beside}) == 6
    with pytest.raises(SpecError, match="resources.decode.actors = 1: the workers leave room for 0;"):
        asked(nodes, **apart | {"labels": beside, "cpus": 4})


@pytest.mark.slow
def test_two_workers_on_ray_come_to_what_one_process_does(
    local_ray: None, one_thread: None, table: Path
) -> None:
    data = {"clips": {"videos": str(table), "sampling": {"frames": 4, "height_px": 8, "width_px": 12}}}
    recipe = {"steps": 20, "batch": 8, "optimizer": {"name": "sgd", "learning_rate": 0.05}}
    values = tiny_shards.spec(table.parent, data=data, recipe=recipe)
    alone, state = trained(values, "alone")
    rows = jobs.run({**values, "resources": {"workers": 2, "cpus": 0.5}})
    assert isinstance(rows, list)
    assert rows[0]["failed"] == alone[0]["failed"] > 0
    assert rows[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-4)
    assert [row["uri"] for row in metrics.read(table.parent / "run", metrics.FAILURES)] == ["broken.mp4"]
    ours = load_file(table.parent / "run" / "model" / "model.safetensors")
    for name, x in state.items():
        torch.testing.assert_close(ours[name], x, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_where_videos_go_in_mid_training_it_ends_with_a_line(
    local_ray: None, clips: Path, tmp_path: Path
) -> None:
    """Whichever of two workers finds it out: the other one does not wait for it, and no attempt is wasted."""
    for number, name in enumerate(NAMES[:2]):
        (tmp_path / f"{number}.mp4").write_bytes((clips / name).read_bytes())
    (tmp_path / "videos.csv").write_text("path,label\n0.mp4,a\n1.mp4,b\n")
    data = {"clips": {"videos": str(tmp_path / "videos.csv"), "sampling": SAMPLING.model_dump(mode="json")}}
    recipe = {"steps": 5000, "batch": 4, "optimizer": {"learning_rate": 1e-3}}
    resources = {"workers": 2, "cpus": 0.5}
    values = tiny_shards.spec(tmp_path, data=data, recipe=recipe, resources=resources)

    def remove() -> None:
        while not list(metrics.read(tmp_path / "run")):
            time.sleep(0.05)
        for path in tmp_path.glob("*.mp4"):
            path.unlink()

    thread = Thread(target=remove, daemon=True)
    thread.start()
    with pytest.raises(WorkerError) as caught:
        jobs.run(values)
    thread.join()
    assert f"{tmp_path}: 32 of 32 clips cannot be read, the last of them " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
