"""What the quickstart's model learns from, as files and the two lists of them that shard jobs take.

    python -m benchmarks.quickstart_data FOLDER --cifar PARQUET_FOLDER --videos VIDEO_FOLDER [--clips 5000]

train.csv holds CIFAR-10's training images, moving digits (benchmarks.digits), and short videos, each of them
the only one of a class. held_out.csv holds CIFAR-10's test images, and clips of digits that are in no other.
Columns: uri, labels, and split, which is the head: cifar, motion or signs.

PARQUET_FOLDER has cifar10_train.parquet and cifar10_test.parquet: `image`, encoded, and `label`, a name. The
videos are those of the folder asl_gestures of github.com/intel-iot-devkit/sample-videos (CC-BY-4.0).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks import digits

Row = tuple[str, str, str]  # uri, labels, split
SEED = 0


def images(folder: Path, table: Path, name: str) -> Iterator[Row]:
    """Write a table's images, as they are encoded, to `name` below `folder`."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    rows = pq.read_table(table, columns=["image", "label"]).to_pylist()
    for number, row in enumerate(rows):
        uri = f"{name}/{number:05d}.jpg"
        (folder / uri).write_bytes(row["image"])
        yield uri, row["label"], "cifar"


def motions(folder: Path, split: digits.Split) -> Iterator[Row]:
    """The clips of moving digits that `digits.write` wrote below `folder`."""
    for row in digits.listed(folder / "digits" / "clips.csv", split):
        yield f"digits/{row['uri']}", row["labels"], "motion"


def videos(folder: Path) -> Iterator[Row]:
    """Every video of a folder is a class of its own."""
    for path in sorted(folder.iterdir()):
        yield str(path.absolute()), path.stem, "signs"


def write(path: Path, rows: Iterable[Row]) -> None:
    """A list in random order: an epoch mixes shards that lie near each other, and CIFAR-10 comes by class."""
    shuffled = list(rows)
    np.random.default_rng(SEED).shuffle(shuffled)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("uri", "labels", "split"), *shuffled])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cifar", type=Path, required=True, metavar="PARQUET_FOLDER")
    parser.add_argument("--videos", type=Path, required=True, metavar="VIDEO_FOLDER")
    parser.add_argument("--clips", type=int, default=5_000, help="moving digits, a fifth of them held out")
    arguments = parser.parse_args()
    folder, cifar = arguments.folder, arguments.cifar
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "digits" / "clips.csv").exists():
        digits.write(folder / "digits", arguments.clips, SEED)
    train = images(folder, cifar / "cifar10_train.parquet", "cifar_train")
    test = images(folder, cifar / "cifar10_test.parquet", "cifar_test")
    write(folder / "train.csv", [*train, *motions(folder, "train"), *videos(arguments.videos)])
    write(folder / "held_out.csv", [*test, *motions(folder, "held-out")])


if __name__ == "__main__":
    main()
