"""`kind: train` on Ray: it survives its workers, and what does not fit is said before anything starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import tiny_shards
import torch
from safetensors.torch import load_file
from training import refused

import jobs
from jobs import checkpoints, metrics
from jobs.curves import page
from jobs.metrics import Row
from jobs.spec import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_shards.write(tmp_path / "clips", 40)
    return tmp_path


def kill_a_worker(run: Path, killed: list[int]) -> None:
    """SIGKILL, a little after the first checkpoint, to one of this process' own training workers."""
    while not checkpoints.steps(run):
        time.sleep(0.02)
    time.sleep(0.2)
    workers = [
        child for child in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]  # fmt: skip
    for child in workers[:1]:
        os.kill(child.pid, signal.SIGKILL)
        killed.append(child.pid)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(folder: Path) -> None:
    """Two workers; the same bits as of a run that nothing happened to; and the same command again is done."""
    recipe = {"steps": 120, "batch": 8, "optimizer": {"learning_rate": 3e-3}, "augment": {"flip": 0.5}}
    values = tiny_shards.spec(
        folder,
        recipe=recipe,
        resources={"workers": 2},
        checkpoints={"every_steps": 20},  # as rows are, or one after the restart would be of fewer steps
    )
    killed: list[int] = []
    killer = Thread(target=kill_a_worker, args=(folder / "run", killed), daemon=True)
    killer.start()
    rows = jobs.run(values)
    killer.join()
    assert len(killed) == 1
    assert isinstance(rows, list)
    assert [row["step"] for row in rows] == [20, 40, 60, 80, 100, 120]
    undisturbed = jobs.run({**values, "output": {"path": str(folder / "other")}})
    assert isinstance(undisturbed, list)
    assert [row["loss"] for row in undisturbed] == [row["loss"] for row in rows]
    ours, theirs = (load_file(folder / name / "model" / "model.safetensors") for name in ("run", "other"))
    for name, x in ours.items():
        torch.testing.assert_close(theirs[name], x, rtol=0, atol=0, msg=name)
    assert not (folder / "run" / ".ray").exists()
    assert jobs.run(values) == rows


@pytest.mark.slow
def test_interrupted_it_saves_and_the_same_command_goes_on(folder: Path) -> None:
    recipe = {"steps": 600, "batch": 8, "optimizer": {"learning_rate": 1e-3}}
    values = tiny_shards.spec(folder, recipe=recipe, checkpoints={"every_steps": 10_000})
    (folder / "spec.json").write_text(json.dumps(values))
    command = [sys.executable, "-m", "jobs", "run", str(folder / "spec.json")]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE, text=True)
    while not list(metrics.read(folder / "run")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "saving a checkpoint ..." in said
    assert said.strip().endswith("the same command goes on from there")
    (step,) = checkpoints.steps(folder / "run")
    assert 20 <= step < 600
    rows = jobs.run(values)
    assert isinstance(rows, list)
    assert [row["step"] for row in rows] == list(range(20, 601, 20))
    assert (folder / "run" / "model" / "model.safetensors").exists()


def test_what_does_not_fit_is_told_before_anything_starts(folder: Path) -> None:
    good = tiny_shards.spec(folder)
    clips = str(folder / "clips")

    def data(**changed: Any) -> dict[str, Any]:
        return {**good, "data": {"clips": {"shards": clips, **changed}}}

    assert "data.clips.split = 'test': no clip has it; there are 'in', 'out'" in refused(data(split="test"))
    assert "no shards in it" in refused(data(shards=str(folder)))
    recipe = good["recipe"]
    odd = {**good, "recipe": {**recipe, "batch": 9}, "resources": {"workers": 2}}
    assert "recipe.batch = 9" in refused(odd)
    frozen = {**good, "recipe": {**recipe, "optimizer": {"learning_rate": 1.0, "freeze": ["x"]}}}
    assert "recipe.optimizer.freeze = 'x': fits no parameter" in refused(frozen)
    other = {"held_out": {"shards": clips, "head": "actions"}}
    assert "no such head is trained: held_out (head actions)" in refused(
        {**good, "validation": {"data": other}}
    )
    finer = {"name": tiny_shards.NAME, "tubes": [{"kernel": [1, 2, 2], "stride": [1, 2, 2]}]}
    assert "cut shards for this model" in refused({**good, "model": finer})
    many = {**good, "recipe": {**recipe, "batch": 99}, "resources": {"workers": 99}}
    assert "resources.workers = 99" in refused(many)
    assert refused({**good, "output": {"path": "s3://bucket/run"}}).startswith(
        "output.path = 's3://bucket/run'"
    )


def test_labels_that_are_missing_or_unknown(folder: Path) -> None:
    labels: list[Any] = [["red"], None, ["blue", "red"], [], ["red"], ["blue"], ["red"], ["pink"]]
    tiny_shards.write(folder / "odd", 8, labels=labels)
    tiny_shards.write(folder / "none", 8, labels=[None] * 8)
    good = tiny_shards.spec(folder)

    def data(name: str) -> dict[str, Any]:
        return {name: {"shards": str(folder / name), "head": "clips"}}

    line = refused({**good, "data": data("odd")})
    assert "3 of 8 clips, the first of them odd1.mp4#0-9/0, have no label" in line
    assert "8 of 8 clips" in refused({**good, "data": data("none")})
    several = {"several": {"shards": tiny_shards.write(folder / "several", 8, labels=[["red", "blue"]] * 8)}}
    assert "have several labels: set multi_label" in refused({**good, "data": several})
    strange = {"shards": tiny_shards.write(folder / "strange", 8, labels=[["pink"]] * 8), "head": "clips"}
    line = refused({**good, "validation": {"data": {"strange": strange}}})
    assert "label 'pink' is none of the 3 classes" in line


def test_images_need_a_model_that_takes_them(folder: Path) -> None:
    stills = {"stills": {"shards": tiny_shards.write(folder / "stills", 8, still=True)}}
    good = tiny_shards.spec(folder)
    deep = {"name": tiny_shards.NAME, "tubes": [tiny_shards.TUBES[0].model_dump(mode="json")]}
    line = refused({**good, "model": deep, "data": {**good["data"], **stills}})
    assert "holds images, and tubevit-nano takes none" in line


def test_a_folder_of_another_spec_is_refused(folder: Path) -> None:
    run = folder / "run"
    run.mkdir()
    (run / "notes.txt").touch()
    good = tiny_shards.spec(folder)
    assert "holds other files (notes.txt)" in refused(good)
    (run / "notes.txt").unlink()
    from jobs.spec import TrainSpec, dump

    spec = load(good)
    assert isinstance(spec, TrainSpec)
    (run / "spec.yaml").write_text(dump(spec.absolute()))
    changed = {**good, "recipe": {**good["recipe"], "steps": 13}}
    assert "belongs to another spec (recipe.steps: 12 there, 13 now)" in refused(changed)


def test_the_page_shows_every_measure(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"step": 20, "loss": 2.0, "accuracy/a": 0.25, "accuracy/<b>": 0.5},
        {"step": 40, "loss": float("nan"), "accuracy/a": 0.5},
    ]
    text = page("a & b", rows)
    assert text.count("<figure>") == 2
    assert text.count("<polyline") == 3
    assert "<b>" not in text
    assert "a &amp; b" in text
    assert "nan" not in text.partition("<svg")[2].partition("</svg>")[0]


def test_metrics_take_back_what_a_restart_does_again(tmp_path: Path) -> None:
    log = metrics.Metrics(tmp_path)
    for step in (20, 40, 60):
        log({"step": step, "loss": 1 / step})
    log({"step": 50, "resumed": 50})
    log({"step": 60, "loss": 0.5})
    log.close()
    assert [(row["step"], row["loss"]) for row in metrics.read(tmp_path)] == [
        (20, 0.05),
        (40, 0.025),
        (60, 0.5),
    ]
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write('{"step": 80, "lo')
    assert [row["step"] for row in metrics.read(tmp_path)] == [20, 40, 60]
    assert list((tmp_path / metrics.BOARD).iterdir())
