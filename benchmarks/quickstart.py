"""The model that the quickstart takes: what it learns from, and its way into the project.

    python -m benchmarks.quickstart data --cifar PARQUET_FOLDER --videos VIDEO_FOLDER [--clips 5000]
    tubelet run benchmarks/specs/quickstart_shards.yaml        (twice; see there)
    tubelet run benchmarks/specs/quickstart_train.yaml
    python -m benchmarks.quickstart publish

`data` writes two lists of files for shard jobs. train.csv holds CIFAR-10's training images, moving digits
(benchmarks.digits), and short videos, each of them the only one of a class. held_out.csv holds CIFAR-10's
test images, and clips of digits that are in no other. Columns: uri, labels, and split, which is the head:
cifar, motion or signs. PARQUET_FOLDER has cifar10_train.parquet and cifar10_test.parquet: `image`, encoded,
and `label`, a name. The videos are the folder asl_gestures of github.com/intel-iot-devkit/sample-videos.

`publish` puts a trained model into models/quickstart, with what was measured, also in its card.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks import digits
from jobs.loop import SCORE
from jobs.metrics import read
from models.weights import CONFIG, WEIGHTS

DATA = Path("runs/quickstart-data")
TRAINED = Path("runs/quickstart-trained")
CARD = Path(__file__).parent.parent / "models" / "quickstart"
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


def data(folder: Path, cifar: Path, clips_from: Path, digit_clips: int) -> None:
    """All files that are not there yet, and both lists."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "digits" / "clips.csv").exists():
        digits.write(folder / "digits", digit_clips, SEED)
    train = images(folder, cifar / "cifar10_train.parquet", "cifar_train")
    test = images(folder, cifar / "cifar10_test.parquet", "cifar_test")
    write(folder / "train.csv", [*train, *motions(folder, "train"), *videos(clips_from)])
    write(folder / "held_out.csv", [*test, *motions(folder, "held-out")])


def publish(run: Path, name: str, card: Path) -> None:
    """Copy RUN/name; what it was measured to do goes into metrics.json, by head, and into the card."""
    for file in (WEIGHTS, CONFIG):
        shutil.copyfile(run / name / file, card / file)
    suffix = " (test)"
    tested = [row for row in read(run) if any(key.endswith(suffix) for key in row)]
    if name == "best":
        step = json.loads((run / name / SCORE).read_text())["step"]
        tested = [row for row in tested if row["step"] == step]
    measured: dict[str, float] = {
        key.removeprefix("accuracy/").removesuffix(suffix): round(float(value), 4)
        for key, value in tested[-1].items()
        if key.endswith(suffix)
    }
    steps = int(tested[-1]["step"])
    (card / "metrics.json").write_text(json.dumps({"steps": steps, "accuracy": measured}, indent=1) + "\n")
    text = re.sub(r"After [\d,]+ steps", f"After {steps:,} steps", (card / "README.md").read_text())
    for head, accuracy in measured.items():
        text = re.sub(rf"(?m)^(\| `{head}`.*\| )[\d.]+ %( \|)$", rf"\g<1>{100 * accuracy:.1f} %\2", text)
        print(f"{head}: {100 * accuracy:.1f} % after {steps:,} steps")
    (card / "README.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("data")
    making.add_argument("--folder", type=Path, default=DATA)
    making.add_argument("--cifar", type=Path, required=True, metavar="PARQUET_FOLDER")
    making.add_argument("--videos", type=Path, required=True, metavar="VIDEO_FOLDER")
    making.add_argument("--clips", type=int, default=5_000, help="moving digits, a fifth of them held out")
    publishing = commands.add_parser("publish")
    publishing.add_argument("--run", type=Path, default=TRAINED)
    publishing.add_argument("--name", choices=("model", "best"), default="model")
    arguments = parser.parse_args()
    if arguments.command == "data":
        data(arguments.folder, arguments.cifar, arguments.videos, arguments.clips)
    else:
        publish(arguments.run, arguments.name, CARD)


if __name__ == "__main__":
    main()
