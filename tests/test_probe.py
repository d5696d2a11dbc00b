"""`kind: probe`: judges of embeddings whose answers are known, and against scikit-learn's of their kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import tiny_embeddings
import torch
from samples import SMALL, embed_spec, rows, tubelet
from sklearn.metrics import average_precision_score
from tiny_embeddings import asked, clusters, labels, probed, splits, unit

import jobs
from jobs.embedded import open_embedded
from jobs.exam import Regression, opened
from jobs.linear import DECAYS
from jobs.questions import ProbeSpec
from jobs.spec import load
from jobs.submission import submit
from pipeline.errors import SpecError

CPU = torch.device("cpu")


def test_what_is_easily_told_apart_is(tmp_path: Path) -> None:
    x = clusters(120, 8, noise=0.05)
    tiny_embeddings.write(tmp_path / "embedded", x, labels=labels(120, 8), split=splits(120))
    found = probed(tmp_path)
    assert list(found["judges"]) == ["linear probe", "1-NN", "5-NN", "20-NN"]
    assert {name: scores["top1"] for name, scores in found["judges"].items()} == dict.fromkeys(
        found["judges"], 1.0
    )
    assert found["judges"]["linear probe"]["top5"] == 1.0
    assert "top5" not in found["judges"]["5-NN"]
    assert found["recall"] == {"same label": {"1": 1.0, "5": 1.0, "10": 1.0}}
    assert (found["videos"], found["tested"], found["notes"]) == (120, 40, [])
    assert found["judges"]["1-NN"]["confusion"] == np.diag([5] * 8).tolist()
    assert not ray.is_initialized()


def test_labels_that_mean_nothing_are_guessed(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(1200, 16))
    tiny_embeddings.write(tmp_path / "embedded", x, labels=labels(1200, 4), split=splits(1200))
    found = probed(tmp_path, neighbours=[1, 20], recall=[1, 2])
    for scores in found["judges"].values():
        assert scores["top1"] == pytest.approx(0.25, abs=0.07)
    assert found["largest_class"] == pytest.approx(0.25, abs=0.01)
    # By chance 1 - (3/4)^k.
    assert found["recall"]["same label"]["1"] == pytest.approx(0.25, abs=0.07)
    assert found["recall"]["same label"]["2"] == pytest.approx(0.4375, abs=0.08)
    # Noise is best hardly listened to.
    assert found["folds"][0]["weight_decay"] >= DECAYS[1]


def test_views_are_averaged_at_the_same_length(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    views = rng.normal(size=(3 * 20, 6)) * rng.lognormal(2, 2, size=(60, 1))
    folder = tiny_embeddings.write(tmp_path / "embedded", views, views=3, parts=4, labels=labels(20, 2))
    embedded = open_embedded(folder)
    assert len(embedded) == 20
    assert embedded.known["uri"].to_pylist() == [f"v{k}.mp4" for k in range(20)]
    expected = unit(unit(views).reshape(3, 20, 6).mean(axis=0))
    np.testing.assert_allclose(embedded.vectors().numpy(), expected, atol=1e-6)
    assert embedded.vectors().dtype == torch.float32


def test_only_videos_of_the_splits_count(tmp_path: Path) -> None:
    """A third split has neither a label nor a place in memory, and what is read lands where it belongs."""
    x = clusters(90, 2, noise=0.05)
    names = [("a", "b", "neither")[k % 3] for k in range(90)]
    marks = [label if name != "neither" else None for label, name in zip(labels(90, 2), names, strict=True)]
    tiny_embeddings.write(tmp_path / "embedded", x, labels=marks, split=names)
    spec = load(asked(tmp_path, split={"train": "a", "test": "b"}))
    assert isinstance(spec, ProbeSpec)
    exam = opened(spec)
    kept = [k for k in range(90) if k % 3 < 2]
    np.testing.assert_allclose(exam.embedded.vectors().numpy(), unit(x)[kept], atol=1e-6)
    (fold,) = exam.folds
    assert [kept[k] % 3 for k in fold.train] == [0] * 30
    assert [kept[k] % 3 for k in fold.test] == [1] * 30
    assert probed(tmp_path, split={"train": "a", "test": "b"})["judges"]["1-NN"]["top1"] == 1.0


def test_many_labels_a_video_are_scored_by_mean_average_precision(tmp_path: Path) -> None:
    x = clusters(120, 3, noise=0.3, seed=6)
    marks = [[f"class {k % 3}"] + (["often"] if k % 2 else []) for k in range(120)]
    tiny_embeddings.write(tmp_path / "embedded", x, labels=marks, split=["train"] * 80 + ["test"] * 40)
    found = probed(tmp_path, multi_label=True)
    assert list(found["judges"]) == ["linear probe"]
    precisions = {
        row["class"]: row["average_precision"] for row in found["judges"]["linear probe"]["classes"]
    }
    assert min(precisions[f"class {k}"] for k in range(3)) > 0.99
    assert precisions["often"] < 0.8
    assert found["folds"][0]["linear probe"] == pytest.approx(sum(precisions.values()) / 4)
    assert "recall" not in found
    spec = load(asked(tmp_path, multi_label=True))
    assert isinstance(spec, ProbeSpec)
    exam = opened(spec)
    (fold,) = exam.folds
    regression = Regression(exam.embedded.vectors(), torch.from_numpy(exam.targets), 4, CPU)
    decay = found["folds"][0]["weight_decay"]
    probe = regression.fitted(regression.standard(fold.train), fold.train, decay)
    logits = probe.logits(exam.embedded.vectors()[80:])
    theirs = average_precision_score(exam.targets[80:], logits, average=None)
    np.testing.assert_allclose([precisions[name] for name in exam.classes], theirs, atol=1e-2)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Embeddings that tell who it is, and nothing of what is done; each person does one thing, ten times."""
    x = clusters(80, 8, noise=0.05, seed=8)
    tiny_embeddings.write(
        tmp_path / "embedded", x, labels=[[f"class {k % 8 % 2}"] for k in range(80)],
        split=splits(80), group=[f"person {k % 8}" for k in range(80)],
    )  # fmt: skip
    return tmp_path


def test_whoever_is_known_is_no_help_with_strangers(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    chosen = Regression.chosen
    monkeypatch.setattr(
        Regression, "chosen", lambda self, train, out: held.append((train, out)) or chosen(self, train, out)
    )
    leaked = probed(people, output={"path": str(people / "leaked")})
    assert all(scores["top1"] == 1.0 for scores in leaked["judges"].values())
    (warning,) = leaked["notes"]
    assert warning == (
        "WARNING: 8 groups or files, person 0 for one, are learned from and asked about: "
        "the scores are too good"
    )
    assert len(held) == 1
    found = probed(people, leave_out="group")
    assert found["notes"] == []
    for scores in found["judges"].values():
        assert scores["top1"] < 0.7
        assert scores["videos"] == 80  # every one once
    assert [fold["fold"] for fold in found["folds"]] == [f"person {k}" for k in range(8)]
    assert all((fold["train"], fold["test"]) == (70, 10) for fold in found["folds"])
    for name, scores in found["judges"].items():
        mean = sum(fold[name] * fold["test"] for fold in found["folds"]) / 80
        assert scores["top1"] == pytest.approx(mean)
    for train, out in held:  # what the weight decay is chosen on: a person or two
        persons, strangers = {k % 8 for k in train[~out]}, {k % 8 for k in train[out]}
        assert len(strangers) == 1
        assert not persons & strangers


def test_no_group_is_on_both_sides(people: Path) -> None:
    spec = load(asked(people, leave_out="group"))
    assert isinstance(spec, ProbeSpec)
    exam = opened(spec)
    groups = np.array(exam.embedded.known["group"].to_pylist())
    for fold in exam.folds:
        assert set(groups[fold.test]) == {fold.name}
        assert fold.name not in groups[fold.train]
        assert sorted([*fold.train, *fold.test]) == list(range(80))


def test_classes_that_are_never_learned_are_named(tmp_path: Path) -> None:
    x = clusters(30, 3, noise=0.05)
    names = ["test" if k % 3 == 2 or k < 9 else "train" for k in range(30)]
    tiny_embeddings.write(tmp_path / "embedded", x, labels=labels(30, 3), split=names)
    found = probed(tmp_path)
    assert found["notes"] == ["note: classes that are asked about but not learned: 1 (class 2)"]
    assert found["judges"]["linear probe"]["classes"][2]["accuracy"] == 0


def test_the_same_command_again_reads_its_report(tmp_path: Path) -> None:
    x = clusters(30, 2, noise=0.05)
    given = {"labels": labels(30, 2), "split": splits(30)}
    tiny_embeddings.write(tmp_path / "embedded", x, **given)
    first = probed(tmp_path)
    report = tmp_path / "probe" / "report.json"
    assert json.loads(report.read_text()) == first
    assert "linear probe" in (tmp_path / "probe" / "report.html").read_text()
    before = report.stat().st_mtime_ns
    assert probed(tmp_path) == first
    assert report.stat().st_mtime_ns == before
    tiny_embeddings.write(tmp_path / "embedded", np.flip(x, 0)[:28], labels=labels(28, 2), split=splits(28))
    assert probed(tmp_path)["videos"] == 28
    report.unlink()
    assert probed(tmp_path)["videos"] == 28
    with pytest.raises(
        SpecError, match=r"belongs to another spec \(neighbours: \[1, 5, 20\] there, \[1\] now"
    ):
        probed(tmp_path, neighbours=[1])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("mine")
    with pytest.raises(SpecError, match=r"holds other files \(x.txt\); choose a new folder"):
        probed(tmp_path, output={"path": str(tmp_path / "notes")})
    with pytest.raises(SpecError, match="belongs to another spec"):
        probed(tmp_path, output={"path": str(tmp_path / "embedded")})


@pytest.mark.parametrize(
    ("columns", "changed", "line"),
    [
        ({}, {}, "embeddings: 12 of 12 clips, the first of them v0.mp4@0-#0-9/0, have no label: name a split "
                 "that is labelled, or have `labels` in the table of the input"),
        ({"labels": [["a", "b"]] * 12}, {}, "have several labels: set multi_label"),
        ({"labels": [["a"]] * 12}, {}, "all videos are labelled 'a'; there is nothing to tell apart"),
        ({"split": None}, {}, "split.train = 'train': no video has a split; or set leave_out: group"),
        ({}, {"split": {"test": "val"}},
         "split.test = 'val': no video has it; there are 'train', 'test'; or set leave_out: group"),
        ({"labels": labels(12, 2)}, {"leave_out": "group"},
         "leave_out = 'group': 12 of 12 videos, the first of them v0.mp4@0-#0-9/0, have no group: name it in "
         "the table of the input, or use split"),
        ({"labels": labels(12, 2), "group": ["x"] * 12}, {"leave_out": "group"},
         "leave_out = 'group': all videos are of group 'x'; use split"),
        ({"labels": labels(12, 2)}, {"text": {}},
         "text: the embeddings are of tubevit-tiny, and not in the space of a text tower, as those of clip "
         "are; leave text out"),
        ({}, {"embeddings": "/no/where"},
         "embeddings = '/no/where': there is no manifest.json: name the output folder of a finished job of "
         "kind embed"),
        ({}, {"split": {"train": "x", "test": "x"}}, "split: train and test are both 'x'"),
        ({}, {"split": {}, "leave_out": "group"}, "spec: split and leave_out exclude each other; keep one"),
        ({}, {"leave_out": "uri"}, "leave_out = 'uri': input should be 'group'"),
        ({}, {"text": {"prompts": ["a video"]}}, "text: prompts: 'a video' has no {}"),
        ({}, {"text": {}, "multi_label": True}, "spec: text with multi_label: a prompt names one class"),
        ({}, {"neighbours": [0]}, "neighbours.0 = 0: input should be greater than 0"),
        ({}, {"neighbors": [1]}, "neighbors: unknown key; did you mean 'neighbours'?"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, columns: dict[str, Any], changed: dict[str, Any], line: str
) -> None:
    given = {"split": splits(12), **columns}
    given = {name: column for name, column in given.items() if column is not None}
    tiny_embeddings.write(tmp_path / "embedded", clusters(12, 2, noise=0.1), **given)
    with pytest.raises(SpecError) as caught:
        probed(tmp_path, **changed)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "probe" / "spec.yaml").exists()


def test_outputs_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "embedded"
    given = {"labels": labels(30, 2), "split": splits(30)}
    tiny_embeddings.write(folder, clusters(30, 2, noise=0.1), **given)
    part = folder / "embeddings" / "part-1.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        SpecError, match=r"embeddings/part-1.parquet cannot be read .*; see: tubelet verify DIR"
    ):
        probed(tmp_path)
    part.unlink()
    with pytest.raises(SpecError, match="embeddings/part-1.parquet cannot be read"):
        probed(tmp_path)
    tiny_embeddings.write(folder, np.zeros((0, 4)), parts=1)
    with pytest.raises(SpecError, match="holds no embeddings; see: tubelet failures DIR"):
        probed(tmp_path)
    (folder / "manifest.json").write_text('{"kind": "shard", "files": []}')
    with pytest.raises(SpecError, match="was made by a job of kind shard; name one of kind embed"):
        probed(tmp_path)


def test_from_the_command_line(people: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """Planned, run, and read on a terminal of 80 columns."""
    spec = people / "spec.json"
    spec.write_text(json.dumps(asked(people, leave_out="group", neighbours=[1, 5])))
    assert tubelet(monkeypatch, "plan", spec, "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["videos"], found["classes"], found["groups, each left out in turn"]) == (80, 2, 8)
    assert found["bytes of embeddings in memory"] == 80 * 16 * 4
    assert not (people / "probe").exists()
    assert tubelet(monkeypatch, "run", spec) == 0
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "probe: tubevit-tiny, 80 videos of 2 classes, in 8 groups" in lines[0]
    assert "over groups" in lines[2]
    starts = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    for name in ("linear probe", "1-NN", "5-NN", "largest class", "same label", "person 7", "class 1"):
        assert name in starts
    assert tubelet(monkeypatch, "run", spec, "--extend") == 2
    assert "a job of kind probe takes none of these" in capfd.readouterr().err
    assert tubelet(monkeypatch, "plan", spec, "--set", "leave_out=null") == 0
    assert "learned from" in capfd.readouterr().out


def test_it_is_not_sent_to_a_cluster() -> None:
    with pytest.raises(SpecError, match="kind = 'probe': one process does it, without a cluster"):
        submit(load(asked(Path("/x"), embeddings="runs/embedded")), "http://127.0.0.1:1")


def test_a_real_jobs_output(clips: Path, local_ray: None, tmp_path: Path) -> None:
    names = ["vp9.webm", "h264_bframes.mp4", "h264.ts", "still.jpg"]
    table = [f"{name},{name.partition('.')[0]},group {k % 2}\n" for k, name in enumerate(names)]
    (tmp_path / "list.csv").write_text("uri,label,group\n" + "".join(table))
    spec = embed_spec(tmp_path / "list.csv", tmp_path / "embedded")
    spec["input"]["root"] = str(clips)
    spec["sampling"] = {**SMALL, "clips": 3}
    jobs.run(spec)
    found = probed(tmp_path, leave_out="group", neighbours=[1], recall=[1])
    assert (found["videos"], found["views"], found["model"]) == (
        4,
        len(rows(tmp_path / "embedded")),
        "tubevit-tiny",
    )
    assert found["judges"]["linear probe"]["top1"] == 0  # whose label nobody else has
    assert "WARNING: tubevit-tiny is randomly initialised" in found["notes"][0]
    assert found["notes"][1].startswith("note: classes that are in a fold asked about but not learned: 4")
    embedded = open_embedded(str(tmp_path / "embedded"))
    by_video: dict[str, list[np.ndarray]] = {}
    for clip, vector in rows(tmp_path / "embedded").items():
        by_video.setdefault(clip.partition("#")[0], []).append(vector)
    for uri, vector in zip(embedded.known["uri"].to_pylist(), embedded.vectors().numpy(), strict=True):
        expected = unit(unit(np.stack(by_video[uri])).mean(axis=0, keepdims=True))[0]
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert pa.compute.all(pa.compute.is_valid(embedded.known["group"])).as_py()
