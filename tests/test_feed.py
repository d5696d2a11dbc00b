"""What the steps of a training run hold: each clip once an epoch, however many processes share them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import tiny_shards
import torch

from jobs.feed import Feed
from jobs.materials import Materials, materials
from jobs.recipe import Augment
from jobs.spec import TrainSpec, load
from pipeline.errors import SpecError

CHANGE = Augment(flip=0.5, brightness=0.3, mixup=0.4)


@pytest.fixture
def found(tmp_path: Path) -> Materials:
    tiny_shards.write(tmp_path / "clips", 30)
    tiny_shards.write(tmp_path / "stills", 12, still=True)
    data = {
        "clips": {"shards": str(tmp_path / "clips"), "weight": 2},
        "stills": {"shards": str(tmp_path / "stills")},
    }
    recipe = {
        "steps": 9, "batch": 24, "accumulate": 2, "optimizer": {"learning_rate": 1.0},
        "augment": CHANGE.model_dump(),
    }  # fmt: skip
    spec = load(tiny_shards.spec(tmp_path, data=data, recipe=recipe, resources={"workers": [1, 2]}))
    assert isinstance(spec, TrainSpec)
    assert spec.shares() == {"clips": 16, "stills": 8}
    return materials(spec)


def feed(found: Materials, rank: int = 0, world: int = 1, accumulate: int = 1) -> Feed:
    return Feed(found.sources, rank, world, accumulate, 7, CHANGE, torch.device("cpu"))


def test_each_epoch_holds_each_clip_once(found: Materials) -> None:
    """45 steps are 24 epochs of the clips and 30 of the images; few of them end where a step does."""
    seen: dict[str, list[str]] = {"clips": [], "stills": []}
    for parts in feed(found).steps(0, 45):
        for one in parts[0]:
            seen[one.head] += one.clip_ids
    for name, count in (("clips", 30), ("stills", 12)):
        epochs = [seen[name][start : start + count] for start in range(0, len(seen[name]), count)]
        assert len(epochs) >= 24
        assert all(max(Counter(epoch).values()) == 1 for epoch in epochs)
        assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_processes_share_what_one_would_see(found: Materials, world: int, accumulate: int) -> None:
    for step in (0, 5):
        (whole,) = feed(found).read(step)
        read = [feed(found, rank, world, accumulate).read(step) for rank in range(world)]
        # The ranks' first parts stand together, then their second ones: losses compare clips of one round.
        parts = [part for each in zip(*read, strict=True) for part in each]
        assert len(parts) == world * accumulate
        for number, one in enumerate(whole):
            some = [part[number] for part in parts]
            assert [name for part in some for name in part.clip_ids] == one.clip_ids
            for name, x in one.tubes.items():
                assert torch.equal(torch.cat([part.tubes[name] for part in some]), x)
            for field in ("targets", "shares"):
                assert torch.equal(torch.cat([getattr(part, field) for part in some]), getattr(one, field))
            others = torch.cat([part.targets[part.partners] for part in some])
            assert torch.equal(others, one.targets[one.partners])


def test_a_step_is_the_same_whenever_it_is_read(found: Materials) -> None:
    straight = list(feed(found).steps(0, 9))
    later = list(feed(found).steps(6, 9))
    for parts, again in zip(straight[6:], later, strict=True):
        for one, other in zip(parts[0], again[0], strict=True):
            assert one.clip_ids == other.clip_ids
            assert all(torch.equal(x, other.tubes[name]) for name, x in one.tubes.items())


def test_targets_are_the_labels(found: Materials) -> None:
    (parts,) = feed(found).read(3)
    for one in parts:
        classes = found.classes[one.head]
        numbers = [int(name.partition(".")[0].removeprefix(one.head)) for name in one.clip_ids]
        assert [classes[int(k)] for k in one.targets] == [tiny_shards.COLOURS[k % 3] for k in numbers]


def test_what_reading_fails_with_is_raised_where_it_is_used(found: Materials, tmp_path: Path) -> None:
    for path in (tmp_path / "clips").iterdir():
        path.unlink()
    with pytest.raises(SpecError, match="cannot be opened"):
        list(feed(found).steps(0, 1))


def test_one_dataset_may_be_mirrored_and_another_not(tmp_path: Path) -> None:
    """Motions tell left from right where pictures do not; what is not said is as recipe.augment says."""
    tiny_shards.write(tmp_path / "clips", 16)
    clips = {"shards": str(tmp_path / "clips")}
    data = {"never": {**clips, "flip": 0.0}, "always": {**clips, "flip": 1.0}, "half": clips}
    recipe = {"steps": 1, "batch": 24, "optimizer": {"learning_rate": 1.0}, "augment": {"flip": 0.5}}
    spec = load(tiny_shards.spec(tmp_path, data=data, recipe=recipe))
    assert isinstance(spec, TrainSpec)
    made = Feed(materials(spec).sources, 0, 1, 1, 7, spec.recipe.augment, torch.device("cpu"))
    counts = [
        [0 if part.mirrored is None else int(part.mirrored.sum()) for part in made.read(step)[0]]
        for step in range(4)
    ]
    never, always, half = (sum(column) for column in zip(*counts, strict=True))
    assert (never, always) == (0, 32)
    assert 4 < half < 28
