"""Joint training is compared fairly: groups apart, budgets equal, classes balanced, sums right."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_shards
from scipy import stats

from benchmarks import corpora, digits, few_shot, joint, paired
from jobs.loop import train
from jobs.spec import EvaluateSpec, TrainSpec, load

DATA = Path(__file__).parents[1].parent / "shared" / "data"
SIZES = few_shot.Sizes(draws=2, shots=3, tests_a_class=30, stills_a_digit=8, test_stills_a_digit=4)
GROUPS = {"weizmann": [f"subj{k}" for k in range(6)], "ut": [f"seq{k:02d}" for k in range(1, 11)]}


def test_few_shots_are_balanced_and_their_samples_apart() -> None:
    learned, tested = list(few_shot.training(SIZES)), list(few_shot.testing(SIZES))
    videos = Counter((split, f"{one.digit} {one.motion}") for split, _, one in learned if one.motion)
    splits = [few_shot.split_of(draw, shot) for draw in range(2) for shot in range(3)]
    assert videos == Counter((split, name) for split in splits for name in few_shot.CLASSES)
    assert Counter(f"{one.digit} {one.motion}" for split, _, one in tested if split == few_shot.TEST) == (
        dict.fromkeys(few_shot.CLASSES, 30)
    )
    for name in (few_shot.STILLS, few_shot.MOTIONLESS):
        for some, count in ((learned, 8), (tested, 4)):
            stills = [one for split, _, one in some if split == name]
            assert Counter(one.digit for one in stills) == dict.fromkeys(range(5), count)
            assert {one.motion for one in stills} == {None}
    samples = [{one.sample for _, _, one in some} for some in (learned, tested)]
    assert not samples[0] & samples[1]
    # No two draws are of the same videos.
    first = {split: one.phases[0, 0] for split, _, one in learned if one.motion}
    assert len(set(first.values())) == len(splits)


def test_a_frame_of_a_few_shot_says_nothing_of_its_motion() -> None:
    """Digits are upright, as large and at such places as in any other class (Kolmogorov-Smirnov)."""
    scenes = [few_shot.video(number, "held-out", 0) for number in range(1200)]
    for frame in (0, digits.FRAMES - 1):
        for attribute in ("across", "down", "zoom"):
            k = digits.ATTRIBUTES.index(attribute)
            for motion in few_shot.MOTIONS:
                own = [one.phases[frame, k] for one in scenes if one.motion == motion]
                rest = [one.phases[frame, k] for one in scenes if one.motion != motion]
                assert stats.ks_2samp(own, rest).pvalue > 1e-3
    assert all((one.phases[:, digits.ATTRIBUTES.index("turn")] == 0).all() for one in scenes)


def test_the_table_says_what_the_files_show(tmp_path: Path) -> None:
    sizes = few_shot.Sizes(draws=1, shots=1, tests_a_class=1, stills_a_digit=1, test_stills_a_digit=1)
    rows = few_shot.write(tmp_path, few_shot.testing(sizes))
    assert all((tmp_path / row["uri"]).stat().st_size for row in rows)
    assert [row["labels"] for row in rows if row["split"] == few_shot.TEST] == list(few_shot.CLASSES)
    held_out = digits.samples()[1]["held-out"]
    for row in rows:
        assert int(row["group"].removeprefix("sample ")) in held_out[int(row["labels"].split()[0])]


@pytest.mark.parametrize("corpus", ["weizmann", "ut"])
def test_every_group_is_left_out_once_and_never_learned_from(corpus: str) -> None:
    found = corpora.cases(corpus, 2, (), GROUPS[corpus])
    assert Counter((case.test, case.seed) for case in found) == (
        dict.fromkeys([(group, seed) for group in GROUPS[corpus] for seed in range(2)], 1)
    )
    for case in found:
        assert sorted([*case.train, case.test]) == GROUPS[corpus]
        assert case.unit == case.test


@pytest.mark.skipif(not (DATA / "labels.csv").exists(), reason="the real data is not here")
@pytest.mark.parametrize(("corpus", "clips", "classes"), [("weizmann", 24, 4), ("ut", 60, 6)])
def test_real_tables(corpus: str, clips: int, classes: int) -> None:
    rows = corpora.videos(DATA, corpus)
    assert (len(rows), len({row["labels"] for row in rows})) == (clips, classes)
    assert {row["split"] for row in rows} == set(GROUPS[corpus])
    assert all(row["split"] == row["group"] and (DATA / row["uri"]).exists() for row in rows)
    with (DATA / "labels.csv").open(newline="") as file:
        labels = {row["path"]: row["label"] for row in csv.DictReader(file)}
    assert all(labels[row["uri"]] == row["labels"] for row in rows)


@pytest.mark.skipif(not (DATA / "images").exists(), reason="the real data is not here")
def test_pictures_of_all_classes_are_as_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(corpora.CIFAR, "test", 100)
    rows = corpora.cifar(DATA, tmp_path, "test")
    assert list(Counter(row["labels"] for row in rows).values()) == [10] * 10
    assert len({(tmp_path / row["uri"]).read_bytes() for row in rows}) == 100


@pytest.mark.parametrize("model", ["tubevit", "gated", "dualpath"])
def test_all_arms_have_one_budget(model: str, tmp_path: Path) -> None:
    budget = joint.Budget(steps=60, batch=8)
    case = corpora.cases("few-shot", 1, (5,), ())[0]
    stages = {arm: joint.Trial(case, model, arm, budget, tmp_path).stages() for arm in joint.ARMS}
    spent = {
        arm: sum(stage.recipe.steps * stage.recipe.batch for stage in some) for arm, some in stages.items()
    }
    assert spent.pop("half video") == 240
    assert set(spent.values()) == {480}
    shares = {arm: [stage.shares() for stage in some] for arm, some in stages.items()}
    assert shares == {
        "video only": [{"actions": 8}],
        "half video": [{"actions": 4}],
        "image -> video": [{"pictures": 8}, {"actions": 8}],
        "joint": [{"actions": 4, "pictures": 4}],
    }
    first, second = stages["image -> video"]
    assert second.model.checkpoint == f"{first.output.path}/model"
    # But for how long, from where and from what, all are learned by one recipe, and tested on the same.
    for some in stages.values():
        for stage in some:
            optimizer = stage.recipe.optimizer
            assert optimizer.warm_up_steps == stage.recipe.steps // 10
            same = optimizer.model_copy(update={"warm_up_steps": 6})
            assert same == stages["joint"][0].recipe.optimizer
            assert stage.recipe.augment == stages["joint"][0].recipe.augment
            assert stage.recipe.seed == stage.model.seed == case.seed
            if "actions" in stage.data:
                assert stage.data["actions"] == stages["joint"][0].data["actions"]
    other = joint.Trial(corpora.cases("few-shot", 2, (5,), ())[1], model, "image -> video", budget, tmp_path)
    assert other.stages()[0].output != first.output  # pictures are learned again for another seed
    # No run goes on from another's checkpoint: each has a folder of its own.
    more = [
        joint.Trial(case, model, "joint", some, tmp_path).stages()
        for case in corpora.cases("few-shot", 2, (5, 10), ())
        for some in (budget, joint.Budget(60, 16))
    ]
    folders = [stage.output.path for stages in [*stages.values(), *more[1:]] for stage in stages]
    assert len(set(folders)) == len(folders)


def test_a_group_on_both_sides_gives_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = joint.Trial(
        corpora.cases("ut", 1, (), GROUPS["ut"])[0], "tubevit", "image -> video", joint.Budget(20), tmp_path
    )
    done: list[TrainSpec] = []
    monkeypatch.setattr(joint, "train", lambda stage, place, log: done.append(stage))
    monkeypatch.setattr(joint, "evaluate", lambda test: {})
    monkeypatch.setattr(corpora, "learned_groups", lambda stage: {f"learned by {len(stage.data)}", "seq01"})
    monkeypatch.setattr(corpora, "tested_groups", lambda test: {"seq01"} if "actions" in test.data else set())
    with pytest.raises(AssertionError, match="learned from and tested on: {'seq01'}"):
        trial.run()
    assert len(done) == 2


def test_groups_are_read_from_the_shards(tmp_path: Path) -> None:
    tiny_shards.write(tmp_path / "clips", 40)
    spec = load({**tiny_shards.spec(tmp_path), "recipe": {
        "steps": 1, "batch": 8, "optimizer": {"learning_rate": 1e-3}}})  # fmt: skip
    assert isinstance(spec, TrainSpec)
    (tmp_path / "run").mkdir()
    train(spec, tmp_path / "run", lambda row: None)
    model = {**spec.model.model_dump(mode="json"), "checkpoint": str(tmp_path / "run" / "model")}
    asked: dict[str, Any] = {"version": 1, "kind": "evaluate", "output": {"path": "x"}, "model": model}
    test = load({**asked, "data": {"clips": {"shards": str(tmp_path / "clips"), "split": ["in", "out"]}}})
    assert isinstance(test, EvaluateSpec)
    assert corpora.learned_groups(spec) == {"person 0", "person 1", "person 2"}  # split: in
    assert corpora.tested_groups(test) == {f"person {k}" for k in range(4)}


def test_the_parts_of_a_class() -> None:
    names = ("0 left", "0 up", "1 left", "1 up")
    confusion = [[5, 2, 1, 0], [0, 6, 0, 3], [0, 0, 4, 0], [1, 0, 2, 7]]
    found = few_shot.parts({"confusion": confusion, "classes": [{"class": name} for name in names]})
    assert found == {"digit": 5 + 2 + 6 + 4 + 2 + 7, "motion": 5 + 1 + 6 + 3 + 4 + 7}


def row(arm: str, unit: str, seed: int, right: int, videos: int = 10) -> dict[str, Any]:
    return {
        "corpus": "ut", "kind": "one left out", "model": "tubevit", "arm": arm, "unit": unit, "seed": seed,
        "right": right, "videos": videos, "learned": 1.0, "pictures": None,
    }  # fmt: skip


def test_differences_are_paired() -> None:
    """Units a and b, two seeds each: a is harder, and joint is better in both."""
    rows = [
        row("video only", "a", 0, 2), row("video only", "a", 1, 4), row("video only", "b", 0, 8),
        row("video only", "b", 1, 18, 20), row("joint", "a", 0, 5), row("joint", "a", 1, 5),
        row("joint", "b", 0, 10), row("joint", "b", 1, 19, 20), row("joint", "c", 1, 0),
    ]  # fmt: skip
    videos = [one for one in rows if one["arm"] == "video only"]
    assert paired.accuracies(videos, "right") == [10 / 20, 22 / 30]
    found = paired.difference(rows, "joint", "video only", "right")
    assert found is not None
    a, b = 10 / 20 - 6 / 20, 29 / 30 - 26 / 30
    assert found.mean == pytest.approx((a + b) / 2)  # c has no partner
    low, high = stats.t.interval(0.95, 1, (a + b) / 2, stats.sem([a, b]))
    assert found.half_width == pytest.approx((high - low) / 2)
    assert (found.better, found.equal, found.worse, found.p) == (2, 0, 0, 0.5)
    back = paired.difference(rows, "video only", "joint", "right")
    assert back is not None
    assert (back.mean, back.worse) == (-found.mean, 2)
    assert paired.difference(rows, "image -> video", "joint", "right") is None
    lines = paired.tables(rows).splitlines()
    assert "| video only | 4 | 100.0% | - | - | - | 61.7% ± 16.5% |" in lines[2]
    assert lines[-1].endswith("| joint against video only | - | - | +15.0 ± 63.5 | 2, 0, 0 | p = 0.50 |")
