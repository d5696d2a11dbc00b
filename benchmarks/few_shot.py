"""Digits that move, few of each kind: which digit it is has to be known as well as which way it goes.

A class is a digit and a motion. Training videos of a class are few; still digits, of which there are many,
show what digits look like but nothing of motion. So the pictures can teach one half of the task, and only
the videos the other.

Both are `benchmarks.digits`' own, but upright: where a digit is and how large stays uniform and independent
of its class in every frame. Test videos are of held-out samples, which neither training videos nor training
stills show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import digits

DIGITS = 5  # 0 to 4
MOTIONS = ("left", "right", "up", "down")
CLASSES = tuple(f"{digit} {motion}" for digit in range(DIGITS) for motion in MOTIONS)
STILLS, MOTIONLESS, TEST = "stills", "motionless", "test"


@dataclass(frozen=True)
class Sizes:
    """draws: so many sets of training videos, one for each seed, with so many `shots` of each class."""

    draws: int = 5
    shots: int = 10
    tests_a_class: int = 20
    stills_a_digit: int = 300
    test_stills_a_digit: int = 60


def split_of(draw: int, shot: int) -> str:
    """The split that holds one video of each class: the `shot`-th of a draw."""
    return f"draw{draw}_{shot}"


def video(number: int, split: digits.Split, seed: int) -> digits.Scene:
    """The `number`-th clip; all classes take turns."""
    turn, which = divmod(number, len(CLASSES))
    digit, motion = divmod(which, len(MOTIONS))
    every = list(digits.MOTIONS)
    return _upright(digits.draw((10 * turn + digit) * len(every) + every.index(MOTIONS[motion]), split, seed))


def still(number: int, split: digits.Split) -> digits.Scene:
    """The `number`-th still picture; all digits take turns."""
    turn, digit = divmod(number, DIGITS)
    return _upright(digits.draw(10 * turn + digit, split, 0, still=True))


def _upright(scene: digits.Scene) -> digits.Scene:
    phases_TA = scene.phases.copy()
    phases_TA[:, digits.ATTRIBUTES.index("turn")] = 0
    return replace(scene, phases=phases_TA)


def training(sizes: Sizes) -> Iterator[tuple[str, str, digits.Scene]]:
    """(split, suffix, scene) of all that may be learned from.

    A motionless video is a still of one frame, which a clip repeats: for a model that takes no images.
    """
    for draw in range(sizes.draws):
        for number in range(sizes.shots * len(CLASSES)):
            yield split_of(draw, number // len(CLASSES)), "mp4", video(number, "train", 1 + draw)
    for number in range(sizes.stills_a_digit * DIGITS):
        yield STILLS, "png", still(number, "train")
        yield MOTIONLESS, "mp4", still(number, "train")


def testing(sizes: Sizes) -> Iterator[tuple[str, str, digits.Scene]]:
    """(split, suffix, scene) of all that is tested on."""
    for number in range(sizes.tests_a_class * len(CLASSES)):
        yield TEST, "mp4", video(number, "held-out", 0)
    for number in range(sizes.test_stills_a_digit * DIGITS):
        yield STILLS, "png", still(number, "held-out")
        yield MOTIONLESS, "mp4", still(number, "held-out")


def write(folder: Path, scenes: Iterator[tuple[str, str, digits.Scene]]) -> list[dict[str, str]]:
    """Files of scenes, and a row of a table for each: uri, labels, split, group (the digit's sample)."""
    rows = []
    for number, (split, suffix, scene) in enumerate(scenes):
        uri = f"{split}/{number:05d}.{suffix}"
        (folder / split).mkdir(parents=True, exist_ok=True)
        pictures_THW3 = digits.paint(scene)
        if suffix == "png":
            Image.fromarray(pictures_THW3[0]).save(folder / uri)
        else:
            digits.encode(folder / uri, pictures_THW3)
        label = str(scene.digit) if scene.motion is None else f"{scene.digit} {scene.motion}"
        rows.append({"uri": uri, "labels": label, "split": split, "group": f"sample {scene.sample}"})
    return rows


def parts(scores: Mapping[str, Any]) -> dict[str, int]:
    """Of how many test videos the digit is recognised, and of how many the motion: from a job's scores."""
    counts, found = np.array(scores["confusion"]), {}
    for k, what in enumerate(("digit", "motion")):
        names = np.array([row["class"].split()[k] for row in scores["classes"]])
        found[what] = int(counts[names[:, None] == names].sum())
    return found
