"""What `benchmarks.joint` learns from: tables of real and made videos and pictures, cut into shards once.

    few-shot    benchmarks.few_shot's moving digits; pictures: still digits
    weizmann    4 actions of 6 people; pictures: CIFAR-10
    ut          UT-Interaction set 1, 6 actions in 10 sequences; pictures: CIFAR-10

Each has a folder with two shard jobs: `train`, of random crops, and `test`, of whole pictures. The split of a
real video is its group, the person or the sequence, so that a case leaves one out by naming all the others.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import jobs
from benchmarks import few_shot
from jobs.feed import Source
from jobs.materials import materials
from jobs.recipe import Learning, Testing
from jobs.report import Report
from jobs.testing import opened

CANVAS = {"frames": 16, "height_px": 64, "width_px": 64}
# How clips are taken from each corpus' videos; and the pictures of a test's views.
SAMPLING: dict[str, dict[str, Any]] = {
    "few-shot": {"stride": 2},
    "weizmann": {"stride": 3, "clips": 3},  # 25 fps: clips of 1.9 s
    "ut": {"stride": 6, "clips": 3},  # 30 fps: clips of 3.2 s
    "cifar10": {},
}
CROPS = {"few-shot": 1, "weizmann": 1, "ut": 3, "cifar10": 1}  # of a test's clip
RANDOM_CROPS = {"count": 4, "area": [0.5, 1.0]}
PICTURES = {"few-shot": "few-shot", "weizmann": "cifar10", "ut": "cifar10"}
DATASETS = {"weizmann": "weizmann4", "ut": "ut_interaction"}  # in labels.csv
CIFAR = {"train": 4000, "test": 1000}

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Case:
    """What is learned from, and what tested on: splits of a corpus' videos.

    kind: what is averaged over its cases. unit: what stands for itself, and is paired: a draw, or a group.
    """

    corpus: str
    kind: str
    unit: str
    seed: int
    train: tuple[str, ...]
    test: str


def cases(corpus: str, seeds: int, shots: Iterable[int], groups: Iterable[str]) -> list[Case]:
    """All cases of a corpus: so many draws of so few shots, or each group left out, so many times."""
    if corpus == "few-shot":
        return [
            Case(
                corpus, f"{count} a class", f"draw {seed}", seed,
                tuple(few_shot.split_of(seed, shot) for shot in range(count)), few_shot.TEST,
            )
            for count in shots for seed in range(seeds)
        ]  # fmt: skip
    names = sorted(groups)
    return [
        Case(corpus, "one left out", out, seed, tuple(name for name in names if name != out), out)
        for seed in range(seeds)
        for out in names
    ]


def table(corpus: str, part: str, data: Path, files: Path) -> Rows:
    """What a corpus has for its `part`, train or test; what has to be made is written to `files`.

    The split and the group of a real video are the same.
    """
    if corpus == "few-shot":
        sizes = few_shot.Sizes()
        return few_shot.write(files, few_shot.training(sizes) if part == "train" else few_shot.testing(sizes))
    return cifar(data, files, part) if corpus == "cifar10" else videos(data, corpus)


def videos(data: Path, corpus: str) -> Rows:
    """The clips of a real corpus, but those of no action, and mirrored copies, which would count twice."""
    with (data / "labels.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["dataset"] == DATASETS[corpus]]
    return [
        {"uri": row["path"], "labels": row["label"], "split": row["group"], "group": row["group"]}
        for row in found
        if row["label"] != "none" and "_mirror" not in row["path"]
    ]


def cifar(data: Path, files: Path, part: str) -> Rows:
    """Some pictures of CIFAR-10, evenly spread, because they lie there class by class."""
    found = pq.read_table(data / "images" / f"cifar10_{part}.parquet", columns=["image", "label"])
    files.mkdir(parents=True, exist_ok=True)
    rows, chosen = [], np.linspace(0, len(found), CIFAR[part], endpoint=False).astype(int)
    for number, row in enumerate(found.take(chosen).to_pylist()):
        name = f"{number:05d}.jpg"
        (files / name).write_bytes(row["image"])
        group = f"{part} {number}"
        rows.append({"uri": name, "labels": row["label"], "split": few_shot.STILLS, "group": group})
    return rows


def cut(folder: Path, corpus: str, data: Path, models: list[dict[str, Any]]) -> list[str]:
    """Shards of a corpus in FOLDER/CORPUS/train and test, if they are not there yet; its test's splits."""
    place = folder / corpus
    for part in ("train", "test"):
        files = place / f"{part}-files"
        if not (place / f"{part}.csv").exists():  # written last: what is listed is there
            write(place / f"{part}.csv", table(corpus, part, data, files))
        shard(place, part, data if corpus in DATASETS else files, corpus, models)
    with (place / "test.csv").open(newline="") as file:
        return sorted({row["split"] for row in csv.DictReader(file)})


def write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def shard(place: Path, part: str, root: Path, corpus: str, models: list[dict[str, Any]]) -> None:
    """A `kind: shard` job of PLACE/PART.csv; at once, if it was done before."""
    crops = {"random_crops": RANDOM_CROPS} if part == "train" else {"crops": CROPS[corpus]}
    report = jobs.run(
        {
            "version": 1, "kind": "shard", "models": models,
            "input": {"path": str(place / f"{part}.csv"), "root": str(root)},
            "sampling": {**CANVAS, **SAMPLING[corpus], **crops},
            "resources": {"decode": {"actors": 1}}, "output": {"path": str(place / part)},
        }
    )  # fmt: skip
    assert isinstance(report, Report)
    assert not report.failures, report.failures_by_reason


def learned_groups(spec: Learning) -> set[str]:
    """The groups of all that a training job learns from."""
    return _groups(materials(spec).sources.values())


def tested_groups(spec: Testing) -> set[str]:
    """The groups of all that an evaluation tests on."""
    return _groups(opened(spec)[1].values())


def _groups(sources: Iterable[Source]) -> set[str]:
    found = {group for source in sources for group in source.dataset.known["group"].to_pylist()}
    assert None not in found, "a clip without a group cannot be kept apart"
    return found
