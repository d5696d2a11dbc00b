"""Checkpoints are written while training goes on, count when they are complete, and know their data."""

from __future__ import annotations

import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_shards
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from training import CutOffError, cut_off, refused, trained

import jobs
from jobs import checkpoints
from jobs.checkpoints import Saver
from jobs.loop import train
from jobs.materials import Held
from jobs.optimizer import Average
from jobs.processes import processes
from jobs.spec import TrainSpec, dump, load
from jobs.workers import WorkerError
from pipeline.errors import SpecError, StorageError

DATA = {"clips": Held("somewhere", 40, "0123")}


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    with processes():
        yield


class Run:
    """Something that trains, of so many channels."""

    def __init__(self, folder: Path, channels: int = 64) -> None:
        self.folder, self.module = folder, nn.Linear(channels, channels)
        self.optimizer = torch.optim.AdamW(self.module.parameters())
        self.average = Average(self.module.named_parameters(), 0.9)
        self.step(1)

    def step(self, number: int) -> None:
        self.module(torch.ones(1, self.module.in_features)).sum().backward()
        self.optimizer.step()
        self.average.update(self.module, number)

    def save(self, saver: Saver, number: int) -> None:
        saver.save(number, self.module, self.optimizer, self.average)

    def load(self, number: int) -> None:
        checkpoints.load(self.folder, number, self.module, self.optimizer, self.average)

    def state(self) -> list[torch.Tensor]:
        moments = [x for state in self.optimizer.state.values() for x in state.values()]
        return [
            x.detach().clone() for x in (*self.module.parameters(), *moments, *self.average.values.values())
        ]


@contextmanager
def held_up() -> Iterator[threading.Event]:
    """Nothing is written until it is set."""
    go, save = threading.Event(), dcp.save

    def late(*args: Any, **options: Any) -> Any:
        assert go.wait(60)
        return save(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dcp, "save", late)
        yield go


def test_training_goes_on_while_one_is_written(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path)
    before = run.state()
    with held_up() as go, Saver(tmp_path, 2, DATA) as saver:
        run.save(saver, 4)
        run.step(2)
        assert checkpoints.steps(tmp_path) == []
        go.set()
        saver.wait()
        assert checkpoints.steps(tmp_path) == [4]
    run.load(4)
    assert len(before) == 10
    for ours, then in zip(run.state(), before, strict=True):
        assert torch.equal(ours, then)
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())


def test_one_at_a_time_and_the_last_are_kept(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path)
    with held_up() as go, Saver(tmp_path, 2, DATA) as saver:
        run.save(saver, 1)
        threading.Timer(0.2, go.set).start()
        run.save(saver, 2)  # when the first is complete
        assert checkpoints.steps(tmp_path)[0] == 1
        for number in (3, 4):
            run.save(saver, number)
    assert checkpoints.steps(tmp_path) == [3, 4]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_000000003", "step_000000004",
    ]  # fmt: skip


@contextmanager
def room(size_bytes: int) -> Iterator[None]:
    """No file may become longer than that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("channels", "size_bytes", "reason"), [(64, 500, "File too large"), (512, 100_000, "is the disk full?")]
)
def test_what_cannot_be_written_is_one_error_and_counts_for_nothing(
    channels: int, size_bytes: int, reason: str, alone: None, tmp_path: Path
) -> None:
    run = Run(tmp_path, channels)
    with Saver(tmp_path, 2, DATA) as saver:
        run.save(saver, 1)
        saver.wait()
        with room(size_bytes):
            run.save(saver, 2)
            with pytest.raises(StorageError) as caught:
                saver.wait()
    place = tmp_path / "checkpoints" / "step_000000002"
    assert str(caught.value).startswith(f"{place}: cannot be written (")
    assert f"{reason}); " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert checkpoints.steps(tmp_path) == [1]
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())
    with Saver(tmp_path, 2, DATA) as saver:  # over what is left of it
        run.save(saver, 2)
    assert checkpoints.steps(tmp_path) == [1, 2]


@pytest.mark.slow
def test_a_job_that_cannot_write_one_ends_with_a_line(tmp_path: Path) -> None:
    """And is not tried again, which would come to the same."""
    tiny_shards.write(tmp_path / "clips", 40)
    values = tiny_shards.spec(tmp_path, resources={"workers": 2})
    spec = load(values)
    assert isinstance(spec, TrainSpec)
    run = Path(spec.output.path)
    run.mkdir()
    (run / "spec.yaml").write_text(dump(spec.absolute()))
    (run / "checkpoints").write_text("in the way")
    with pytest.raises(WorkerError) as caught:
        jobs.run(values)
    assert "checkpoints/step_000000004: cannot be written (" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_shards_that_have_grown_are_refused(tmp_path: Path) -> None:
    tiny_shards.write(tmp_path / "clips", 40)
    values = tiny_shards.spec(tmp_path)
    spec = load(values)
    assert isinstance(spec, TrainSpec)
    run = tmp_path / "run"
    run.mkdir()
    (run / "spec.yaml").write_text(dump(spec.absolute()))
    with cut_off(6), pytest.raises(CutOffError):
        train(spec, run, lambda row: None)
    assert checkpoints.steps(run) == [4]
    tiny_shards.write(tmp_path / "more", 48)
    new = tmp_path / "clips" / "0040.arrow"
    shutil.copy(tmp_path / "more" / "0040.arrow", new)
    line = refused(values)
    assert line.startswith(
        f"data.clips.shards = {str(tmp_path / 'clips')!r}: holds 36 clips, but 30 when step 4"
    )
    assert "name a new output.path" in line
    with pytest.raises(SpecError, match="holds 36 clips, but 30 when"):
        train(spec, run, lambda row: None)
    new.unlink()
    moved = tmp_path / "clips" / "0032.arrow"
    moved.rename(tmp_path / "clips" / "0033.arrow")
    assert "holds its 30 clips in other shards than when step 4 was saved" in refused(values)
    (tmp_path / "clips" / "0033.arrow").rename(moved)
    rows, _ = trained(values)
    assert rows[0] == {"step": 4, "resumed": 4}
