"""Training learns, goes on where it was cut off, and comes to the same on any number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_shards
import torch
from safetensors.torch import load_file
from torch import nn
from training import CutOffError, by_torchrun, cut_off, trained

import models
from jobs import checkpoints
from jobs.loop import DivergedError, Row, train
from jobs.optimizer import Average
from jobs.spec import TrainSpec, load
from models import weights
from pipeline.sampling import Sampling

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_shards.write(tmp_path / "clips", 40)
    return tmp_path


def with_(values: dict[str, Any], **recipe: Any) -> dict[str, Any]:
    return {**values, "recipe": {**values["recipe"], **recipe}}


def test_it_learns_and_the_model_is_what_it_was_tested_as(folder: Path) -> None:
    held_out = {"data": {"out": {"shards": str(folder / "clips"), "split": "out", "head": "clips"}}}
    rows, state = trained(with_(tiny_shards.spec(folder, validation=held_out), steps=60))
    assert [row["step"] for row in rows] == [20, 40, 60, 60]
    losses = [float(row["loss"]) for row in rows if "loss" in row]
    assert losses[0] > 2 * losses[-1]
    assert rows[-1]["accuracy/out (test)"] == 1.0
    stored = weights.stored(folder / "run" / "model")
    assert stored.classes == {"clips": ("blue", "green", "red")}
    model = models.create(
        tiny_shards.NAME, frames=4, size=(8, 12), tubes=tiny_shards.TUBES, checkpoint=folder / "run" / "model"
    )
    assert stored.model.num_classes == 3
    torch.testing.assert_close(model.state_dict()["head.weight"], state["head.weight"], rtol=0, atol=0)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(folder: Path, ema: float | None) -> None:
    recipe = {"optimizer": {"learning_rate": 3e-3, "ema": ema}, "augment": {"mixup": 0.4, "brightness": 0.3}}
    values = with_(tiny_shards.spec(folder), **recipe)
    _, whole = trained(values, "whole")

    spec = load(values)
    assert isinstance(spec, TrainSpec)
    run = folder / "cut"
    run.mkdir()
    for steps, last in ((6, 4), (5, 8)):  # each some steps after a checkpoint
        with cut_off(steps), pytest.raises(CutOffError):
            train(spec, run, lambda row: None)
        assert checkpoints.steps(run)[-1] == last
    rows: list[Row] = []
    train(spec, run, rows.append)
    assert rows[0] == {"step": 8, "resumed": 8}
    resumed = load_file(run / "model" / "model.safetensors")
    for name, x in whole.items():
        torch.testing.assert_close(resumed[name], x, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_come_to_what_one_does(folder: Path, parallel: str) -> None:
    """Of the same global batch, mixed and mirrored in the same way; sums are in another order, hence 1e-4.

    By SGD: Adam makes full steps even of gradients that are nothing but rounding.
    """
    tiny_shards.write(folder / "stills", 24, still=True)
    tiny_shards.write(folder / "few", 5)
    data = {
        "clips": {"shards": str(folder / "clips")},
        "stills": {"shards": str(folder / "stills"), "weight": 0.5},
    }
    # Five clips in batches of two: in the end one process has none left.
    few = {"data": {"few": {"shards": str(folder / "few"), "head": "clips"}}, "every_steps": 10, "batch": 2}
    recipe: dict[str, Any] = {
        "steps": 20, "batch": 24, "accumulate": 2, "augment": {"flip": 0.5, "mixup": 0.5},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "warm_up_steps": 3, "ema": 0.5},
    }  # fmt: skip
    values = with_(
        tiny_shards.spec(
            folder, data=data, validation=few, resources={"workers": [1, 2]}, strategy={"parallel": parallel}
        ),
        **recipe,
    )
    one, state = trained({**values, "strategy": {}}, "one")
    two = by_torchrun(values, folder, "two", 2)
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"clips_per_second", "waited"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    other = load_file(folder / "two" / "model" / "model.safetensors")
    for name, x in state.items():
        torch.testing.assert_close(other[name], x, rtol=1e-3, atol=1e-5, msg=name)
    # And one process goes on from a checkpoint of two.
    (folder / "two" / "model" / "model.safetensors").unlink()
    rows, again = trained({**values, "strategy": {}}, "two")
    assert rows[0] == {"step": 16, "resumed": 16}
    for name, x in other.items():
        torch.testing.assert_close(again[name], x, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_dropout_is_that_of_the_parts_of_a_batch(tmp_path: Path) -> None:
    """Two workers draw what one does that works through as many parts; and it is dropout that is tested."""
    clip = {"arch": tiny_shards.tower(tmp_path, 24)}
    sampling = Sampling(frames=16, height_px=16, width_px=16)
    plan = models.plan("dualpath-b16", frames=16, size=(16, 16), clip=models.ClipConfig(**clip))
    tiny_shards.write(tmp_path / "clips", 24, plan=plan, sampling=sampling)
    recipe = {"steps": 4, "batch": 8, "optimizer": {"name": "sgd", "learning_rate": 0.5}}
    values = tiny_shards.spec(tmp_path, model={"name": "dualpath-b16", "clip": clip}, recipe=recipe)
    _, state = trained(with_(values, accumulate=2), "one")
    by_torchrun({**values, "resources": {"workers": 2}}, tmp_path, "two", 2)
    two = load_file(tmp_path / "two" / "model" / "model.safetensors")
    for name, x in state.items():
        torch.testing.assert_close(two[name], x, rtol=1e-4, atol=1e-6, msg=name)
    _, other = trained(values, "other")
    assert not torch.allclose(other["temporal.0.mlp.up.weight"], state["temporal.0.mlp.up.weight"], rtol=1e-2)


@pytest.mark.slow
def test_what_is_terminated_saves_and_goes_on(folder: Path) -> None:
    values = with_(tiny_shards.spec(folder, checkpoints={"every_steps": 1000}), steps=400)
    _, whole = trained(values, "whole")
    (folder / "spec.json").write_text(json.dumps(values))
    run, worker = folder / "run", Path(__file__).parent / "train_worker.py"
    run.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(worker), str(folder / "spec.json"), str(run)],
        env={**os.environ, "PYTHONPATH": str(worker.parent.parent), "OMP_NUM_THREADS": "1"},
    )
    while not (run / "begun").exists() and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 0
    (step,) = checkpoints.steps(run)
    assert 20 <= step < 400
    assert not (run / "model").exists()
    rows, resumed = trained(values, "run")
    assert rows[0] == {"step": step, "resumed": step}
    for name, x in whole.items():
        torch.testing.assert_close(resumed[name], x, rtol=0, atol=0, msg=name)


def test_images_alone_train_what_sees_them(folder: Path) -> None:
    data = {"stills": {"shards": tiny_shards.write(folder / "stills", 24, still=True)}}
    values = tiny_shards.spec(folder, data=data)
    _, state = trained(values)
    fresh = models.create(
        tiny_shards.NAME, frames=4, size=(8, 12), tubes=tiny_shards.TUBES, num_classes=3
    ).state_dict()
    same = {name for name, x in state.items() if torch.equal(x, fresh[name])}
    assert same == {"trunk.tokenizer.weight.tube_2x4x4", "trunk.tokenizer.bias.tube_2x4x4"}
    checkpoint = folder / "run" / "model"
    spec = load({**values, "model": {**values["model"], "checkpoint": str(checkpoint)}})
    assert isinstance(spec, TrainSpec)
    (folder / "on").mkdir()
    train(spec, folder / "on", lambda row: None)  # and go on from there


def test_the_best_model_is_kept(folder: Path) -> None:
    held_out = {"data": {"out": {"shards": str(folder / "clips"), "split": "out", "head": "clips"}}}
    often = {**held_out, "every_steps": 10, "batch": 3}
    rows, last = trained(with_(tiny_shards.spec(folder, validation=often), steps=60))
    tested = {int(row["step"]): row["accuracy/out (test)"] for row in rows if "accuracy/out (test)" in row}
    assert list(tested) == [10, 20, 30, 40, 50, 60]
    score = json.loads((folder / "run" / "best" / "score.json").read_text())
    assert score["accuracy"] == max(tested.values()) == tested[score["step"]]
    assert all(value < score["accuracy"] for step, value in tested.items() if step < score["step"])
    best = load_file(folder / "run" / "best" / "model.safetensors")
    assert best.keys() == last.keys()
    assert torch.equal(best["head.weight"], last["head.weight"]) == (score["step"] == 60)


def test_what_is_saved_are_the_averaged_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Average] = []
    update = Average.update

    def seen(self: Average, model: nn.Module, step: int) -> None:
        update(self, model, step)
        kept.append(self)

    monkeypatch.setattr(Average, "update", seen)
    _, state = trained(with_(tiny_shards.spec(folder), optimizer={"learning_rate": 3e-3, "ema": 0.9}))
    assert len(kept) == 12
    for name, x in kept[-1].values.items():
        assert torch.equal(state[name.removeprefix("model.")], x), name
    _, own = trained(tiny_shards.spec(folder), "own")
    assert not torch.equal(own["head.weight"], state["head.weight"])


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_clips(folder: Path) -> None:
    values = with_(tiny_shards.spec(folder), optimizer={"learning_rate": 1e30, "clip_norm": None})
    with pytest.raises(DivergedError, match=r"step \d+, worker 0: .* over clips\d+.mp4#0-9/0, "):
        trained(values)
    assert not (folder / "run" / "model").exists()
