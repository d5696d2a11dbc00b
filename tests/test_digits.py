"""Moving digits are what they claim to be: motions as named, frames that tell nothing, files without loss."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from benchmarks import digits, digits_tower, learn
from models import plans
from models.clip import Clip
from models.model import Model
from models.tubevit import TubeTrunk, TubeViT
from pipeline.corpus import read_corpus
from pipeline.plan import Canvas, Plan, Tube

WHOLE = Canvas(frames=digits.FRAMES, height_px=digits.SIZE_PX, width_px=digits.SIZE_PX)
WHOLE_PLAN = Plan(tubes=(Tube(name="whole", kernel=WHOLE.shape, stride=WHOLE.shape, canvas=WHOLE),))
MOTIONS = list(digits.MOTIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    digits.write(folder, clips=40, seed=3, images=10)
    return folder


def still(sample: int, **phases: float) -> np.ndarray:
    """float64 (64, 64): the ink of one digit, in the middle unless told otherwise."""
    rest = {"across": 0.5, "down": 0.5, "turn": 0.0, "zoom": 0.5}
    phases_TA = np.array([[(rest | phases)[name] for name in digits.ATTRIBUTES]])
    scene = digits.Scene(0, sample, None, phases_TA, np.zeros(3), np.zeros((64, 64, 3)))
    return digits.coverage(scene)[0]


def test_attributes_are_what_their_names_say() -> None:
    at_rest = still(5)
    assert 0.02 < at_rest.mean() < 0.2
    np.testing.assert_allclose(still(5, across=0.75), np.roll(at_rest, 16, axis=1), atol=1e-9)
    np.testing.assert_allclose(still(5, down=0.75), np.roll(at_rest, 16, axis=0), atol=1e-9)
    np.testing.assert_allclose(still(5, turn=0.25), np.rot90(at_rest, -1), atol=1e-9)  # clockwise
    areas = [still(5, zoom=zoom).sum() for zoom in (0, 0.5, 1)]
    np.testing.assert_allclose(np.divide(areas[1:], areas[:-1]), 56 / 32, rtol=0.02)


def test_a_digit_lies_as_it_was_written() -> None:
    """Shrunk to 8x8 again it is scikit-learn's sample: neither transposed nor mirrored."""
    square = still(7, zoom=1)[4:60, 4:60].reshape(8, 7, 8, 7).mean((1, 3))
    assert np.corrcoef(square.ravel(), digits.samples()[0][7].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_clip_moves_as_its_label_says_and_no_other_way(motion: str) -> None:
    attribute, sign = digits.MOTIONS[motion]
    k = digits.ATTRIBUTES.index(attribute)
    speeds = []
    for number in range(MOTIONS.index(motion), 160, 8):
        scene = digits.draw(number, "train", 0)
        assert scene.motion == motion
        steps_TA = (np.diff(scene.phases, axis=0) + 0.5) % 1 - 0.5  # the nearer way around
        assert (np.delete(steps_TA, k, axis=1) == 0).all()
        np.testing.assert_allclose(steps_TA[:, k], steps_TA[0, k])
        speeds.append(sign * steps_TA[0, k] * digits.FRAMES)
    least, most = digits.PERIODS[attribute]
    assert least <= min(speeds) < max(speeds) <= most
    assert max(speeds) - min(speeds) > (most - least) / 2


def seen(number: int) -> np.ndarray:
    """What one frame shows, (5,): centre across and down and orientation as angles, ink, brightness."""
    scene = digits.draw(number, "train", 1)
    frame = np.random.default_rng(number).integers(digits.FRAMES)
    alone = digits.Scene(scene.digit, scene.sample, None, scene.phases[[frame]], scene.ink, scene.paper)
    ink = digits.coverage(alone)[0]
    around = np.exp(2j * np.pi * (np.arange(64) + 0.5) / 64)
    across, down = (np.angle((ink.sum(axis) * around).sum()) for axis in (0, 1))
    there = np.roll(ink, [32 - int(a / 2 / np.pi * 64) for a in (down, across)], (0, 1))
    y, x = np.mgrid[-31.5:32, -31.5:32]
    orientation = np.angle(((x + 1j * y) ** 2 * there).sum())
    return np.array([across, down, orientation, ink.sum(), digits.paint(alone).mean()])


def test_one_frame_is_distributed_alike_in_every_class() -> None:
    """Kolmogorov-Smirnov, each class against the rest, of what is measured in the rendered pixels."""
    measured = np.array([seen(number) for number in range(2000)])
    motion = np.arange(2000) % 8
    p_values = [
        stats.ks_2samp(measured[motion == k, j], measured[motion != k, j]).pvalue
        for k in range(8)
        for j in range(measured.shape[1])
    ]
    assert min(p_values) > 0.01 / len(p_values)  # Bonferroni
    assert stats.kstest(p_values, "uniform").pvalue > 0.001


def test_phases_are_uniform_and_independent_at_any_frame() -> None:
    scenes = [digits.draw(number, "train", 2) for number in range(1600)]
    for frame in (0, digits.FRAMES - 1):
        phases = np.array([scene.phases[frame] for scene in scenes])
        for k in range(8):
            for phase in phases[k::8].T:
                assert stats.kstest(phase, "uniform").pvalue > 1e-4
            waves = np.exp(2j * np.pi * phases[k::8])
            shared = np.abs(waves.T @ waves.conj()) / len(waves)
            assert (shared[~np.eye(4, dtype=bool)] < 0.25).all()  # 200 clips: 3.5 standard deviations


@pytest.mark.parametrize("motion", MOTIONS)
def test_an_altered_clip_moves_as_its_new_label_says(motion: str) -> None:
    """Seen in the pixels: which way the digit's centre goes around the torus, or how its ink grows."""
    labels = set()
    for seed in range(16):
        number = MOTIONS.index(motion) + 8 * seed
        pictures = digits.paint(digits.draw(number, "train", 4))
        frames, label = digits.altered({WHOLE: pictures}, number % 8, np.random.default_rng(seed))
        labels.add(MOTIONS[label])
        attribute, sign = digits.MOTIONS[MOTIONS[label]]
        x_THW = frames[WHOLE].astype(float).mean(-1)
        ink_THW = (x_THW - np.median(x_THW, axis=(1, 2), keepdims=True)).clip(30) - 30
        around = np.exp(2j * np.pi * (np.arange(64) + 0.5) / 64)
        if attribute in ("across", "down"):
            centre_T = ink_THW.sum(1 if attribute == "across" else 2) @ around
            assert np.median(np.angle(centre_T[1:] / centre_T[:-1])) * sign > 0.05
        elif attribute == "zoom":
            assert np.median(np.diff(ink_THW.sum((1, 2)))) * sign > 0
    assert len(labels) == (4 if motion in ("left", "right", "up", "down") else 2)


def test_held_out_samples_never_occur_in_training() -> None:
    images, pools = digits.samples()
    for digit in range(10):
        train, out = (set(pools[split][digit].tolist()) for split in digits.SPLITS)
        assert not train & out
        assert 30 <= len(out) < len(train) / 3
    assert sum(len(pool) for split in digits.SPLITS for pool in pools[split]) == len(images)
    for split in digits.SPLITS:
        scenes = [digits.draw(number, split, 0) for number in range(160)]
        assert all(scene.sample in pools[split][scene.digit] for scene in scenes)
        pairs = {(scene.motion, scene.digit): 0 for scene in scenes}
        assert len(pairs) == 80  # each motion with each digit, twice


def test_what_is_read_is_what_was_painted(folder: Path) -> None:
    for split, count in (("train", 32), ("held-out", 8)):
        tubes, labels = digits.read(folder, WHOLE_PLAN, split)
        assert labels.tolist() == [number % 8 for number in range(count)]
        for number, clip in enumerate(tubes["whole"]):
            np.testing.assert_array_equal(clip[0, 0, 0], digits.paint(digits.draw(number, split, 3)))


def test_any_plan_can_be_read(folder: Path) -> None:
    """Several canvases, frames that are passed over, another size: DualPath's plan at 96x64."""
    plan = plans.dualpath(plans.canvas(32, (96, 64), "bilinear"), 16)
    tubes, labels = digits.read(folder, plan, "held-out")
    assert {name: x.shape for name, x in tubes.items()} == {t.name: (8, *t.shape) for t in plan.tubes}
    assert len(labels) == 8
    assert all(x.std() > 5 for x in tubes.values())


def test_the_lists_are_what_a_job_takes(folder: Path) -> None:
    for name, media, count in (("clips", "video", 40), ("images", "image", 10)):
        corpus = read_corpus(str(folder / f"{name}.csv"))
        rows = [row for chunk in corpus.chunks for row in chunk.to_pylist()]
        assert len(rows) == count
        assert {row["media"] for row in rows} == {media}
        assert sum(row["split"] == "held-out" for row in rows) == count // 5
        labels = {row["labels"][0] for row in rows}
        assert labels == (set(MOTIONS) if name == "clips" else set("01234567"))
    with (folder / "images.csv").open() as file:
        assert all(row["caption"].endswith(row["labels"]) for row in csv.DictReader(file))


def painted(split: digits.Split, count: int) -> learn.Clips:
    """What `learn.read` gives, without the files."""
    frames = np.stack([digits.paint(digits.draw(number, split, 0)) for number in range(count)])
    return learn.Clips({WHOLE: frames}, np.arange(count) % 8)


def learned(make: Callable[[], Model], epochs: int, clips: int) -> float:
    """How much of 400 held-out clips a model gets right after some training."""
    torch.manual_seed(0)
    model = make()
    recipe = learn.Recipe(epochs=epochs)
    learn.fit(model, painted("train", clips), recipe, 0, lambda epoch, loss, share: None)
    return learn.accuracy(model, painted("held-out", 400))


@pytest.mark.slow
def test_a_small_tubevit_begins_to_see_motion() -> None:
    """Chance is 1/8; it was at 0.44 when this was written."""
    tubes = plans.tubes(learn.CANVAS, plans.TUBEVIT)
    assert learned(lambda: TubeViT(TubeTrunk(tubes, 64, 2, 4), num_classes=8), 10, 800) > 0.35


def test_the_frozen_tower_is_the_one_that_open_clip_trained(tmp_path: Path) -> None:
    spec = digits_tower.load().model_copy(update={"steps": 2, "batch": 4})
    digits_tower.weights(tmp_path, spec)
    still = learn.KEY_FRAMES.image()
    assert still is not None
    clip = Clip(still, digits_tower.arch_of())
    digits_tower.fill(clip, tmp_path)
    theirs = digits_tower.train(spec, Console(quiet=True))  # the same once more
    pictures, _ = digits_tower.stills(0, 8, "held-out", 0)
    patches = pictures.reshape(8, 4, 16, 4, 16, 3).swapaxes(2, 3)[:, None, :, :, None]
    with torch.no_grad():
        torch.testing.assert_close(
            clip.frames({"tube_1x16x16": torch.from_numpy(patches)})[:, 0], theirs.embed(pictures),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip
