"""`kind: evaluate`: every video once, its views averaged, in numbers that are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_shards
import torch

import jobs
import models
from jobs.loop import train
from jobs.scores import Scores
from jobs.spec import EvaluateSpec, TrainSpec, load
from jobs.testing import evaluate
from models import weights
from pipeline.errors import SpecError
from pipeline.shards import ShardReader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and a model that was trained on them for a moment."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny_shards.write(folder / "clips", 40)
    values = tiny_shards.spec(folder, recipe={"steps": 6, "batch": 8, "optimizer": {"learning_rate": 1e-3}})
    spec = load(values)
    assert isinstance(spec, TrainSpec)
    (folder / "run").mkdir()
    train(spec, folder / "run", lambda row: None)
    return folder


def asked(folder: Path, **changed: Any) -> dict[str, Any]:
    return {
        "version": 1, "kind": "evaluate", "output": {"path": str(folder / "scores")}, "batch": 7,
        "data": {"test": {"shards": str(folder / "clips"), "split": "out"}},
        "model": {
            "name": tiny_shards.NAME, "checkpoint": str(folder / "run" / "model"),
            "tubes": [tube.model_dump(mode="json") for tube in tiny_shards.TUBES],
        },
        **changed,
    }  # fmt: skip


def checked(values: dict[str, Any]) -> EvaluateSpec:
    spec = load(values)
    assert isinstance(spec, EvaluateSpec)
    return spec


def test_numbers_are_those_of_the_model_itself(folder: Path) -> None:
    (found,) = evaluate(checked(asked(folder))).values()
    model = models.create(
        tiny_shards.NAME, frames=4, size=(8, 12), tubes=tiny_shards.TUBES, checkpoint=folder / "run" / "model"
    )
    right = np.zeros((3, 3), int)
    for path in sorted((folder / "clips").iterdir()):
        reader = ShardReader(str(path))
        rows = reader.columns(["split", "labels"]).to_pylist()
        tubes = {name: torch.from_numpy(x.copy()) for name, x in reader.tubes(model.plan).items()}
        with torch.inference_mode():
            named = model(tubes).argmax(1)
        for row, one in zip(rows, named, strict=True):
            if row["split"] == "out":
                right[tiny_shards.COLOURS.index(row["labels"][0]), int(one)] += 1
    assert found["confusion"] == right.tolist()
    assert found["videos"] == right.sum() == 10
    assert found["top1"] == pytest.approx(right.trace() / 10)
    assert found["mean_class_accuracy"] == pytest.approx((right.diagonal() / right.sum(1)).mean())
    assert [row["class"] for row in found["classes"]] == list(tiny_shards.COLOURS)
    assert 0 <= found["calibration_error"] <= 1


@pytest.mark.slow
def test_two_workers_of_ray_find_the_same(folder: Path) -> None:
    """One of them without any video of the second set."""
    one = {"shards": tiny_shards.write(folder / "one", 3, videos=1), "head": "clips"}
    data = {**asked(folder)["data"], "one": one}
    found = jobs.run(asked(folder, data=data, resources={"workers": 2}))
    assert isinstance(found, dict)
    assert found["one"]["videos"] == 1
    here = evaluate(checked(asked(folder)))["test"]
    assert found["test"]["classes"] == here["classes"]
    assert found["test"]["confusion"] == here["confusion"]
    for name in ("videos", "top1", "mean_class_accuracy", "calibration_error"):
        assert found["test"][name] == pytest.approx(here[name], abs=1e-6)
    report = json.loads((folder / "scores" / "report.json").read_text())
    assert report == found


@pytest.mark.parametrize("batch", [1, 3, 4, 64])
def test_views_of_a_video_are_averaged(folder: Path, tmp_path: Path, batch: int) -> None:
    """Two clips of each video, a shard apart: what counts is the mean of both logits, in whatever batches."""
    tiny_shards.write(tmp_path / "pairs", 16, videos=8)
    data = {"pairs": {"shards": str(tmp_path / "pairs"), "head": "clips"}}
    spec = checked(asked(folder, data=data, batch=batch))
    found = evaluate(spec)["pairs"]
    model = models.create(
        tiny_shards.NAME, frames=4, size=(8, 12), tubes=tiny_shards.TUBES, checkpoint=folder / "run" / "model"
    )
    parts = []
    for path in sorted((tmp_path / "pairs").iterdir()):
        tubes = {k: torch.from_numpy(x.copy()) for k, x in ShardReader(str(path)).tubes(model.plan).items()}
        with torch.inference_mode():
            parts.append(model(tubes))
    named = (parts[0] + parts[1]).argmax(1)
    expected = np.zeros((3, 3), int)
    for number, one in enumerate(named):
        expected[number % 3, int(one)] += 1
    assert found["confusion"] == expected.tolist()


def test_scores_of_any_number_of_labels() -> None:
    scores = Scores(("a", "b", "c"), torch.device("cpu"), multi_label=True)
    logits = torch.tensor([[2.0, -1, 0], [1, 2, 0], [-1, 3, 0], [0, -2, 0]])
    scores.update(logits, torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]))
    found = scores.compute()
    precisions = {row["class"]: row["average_precision"] for row in found["classes"]}
    assert [row["videos"] for row in found["classes"]] == [2, 2, 0]
    assert precisions["c"] is None
    assert precisions["b"] == pytest.approx(1.0)
    assert precisions["a"] == pytest.approx((1 + 2 / 4) / 2)
    assert found["mean_average_precision"] == pytest.approx((precisions["a"] + 1) / 2)


def test_what_does_not_fit_is_told(folder: Path, tmp_path: Path) -> None:
    def refused(**changed: Any) -> str:
        with pytest.raises(SpecError) as caught:
            jobs.run({**asked(folder, **changed), "output": {"path": str(tmp_path / "out")}})
        return str(caught.value)

    model = asked(folder)["model"]
    assert "model.checkpoint is missing" in refused(model={**model, "checkpoint": None})
    assert "no config.json there" in refused(model={**model, "checkpoint": str(folder)})
    data = {"test": {"shards": str(folder / "clips"), "head": "actions"}}
    assert "data.test.head = 'actions': the checkpoint has no such head; there are clips" in refused(
        data=data
    )
    assert weights.stored(folder / "run" / "model").classes == {"clips": tiny_shards.COLOURS}
    strange = {"test": {"shards": tiny_shards.write(tmp_path / "strange", 8, labels=[["pink"]] * 8)}}
    assert "label 'pink' is none of the 3 classes" in refused(data=strange)
