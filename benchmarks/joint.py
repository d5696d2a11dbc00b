"""Do pictures help a model to understand videos? Videos alone, pictures first, and both at once.

    python -m benchmarks.joint --data ../shared/data --folder runs/joint [--only few-shot] [--seeds 3]

TubeViT (arXiv:2212.03229, section 3.3, Table 5) finds joint training best, then pictures first, then videos
alone. Here each arm has the same budget: so many steps of so many clips. `image -> video` spends half of its
steps on pictures and goes on from those weights with a new head; in `joint` half of each batch are pictures,
with a head of their own. `half video` is the control of `joint`: its videos, without its pictures.

What is tested on is kept apart by its group: the person, the sequence, or the sample of a digit. Corpora are
`benchmarks.corpora`'s, frozen towers `benchmarks.digits_tower`'s. FOLDER/rows.jsonl gets a row for each run;
the same command again goes on after the last of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import corpora, digits_tower, few_shot, paired
from benchmarks.corpora import Case
from jobs.loop import train
from jobs.metrics import Row
from jobs.spec import EvaluateSpec, TrainSpec, load
from jobs.testing import evaluate

out = Console(width=160, highlight=False)
ARMS = ("video only", "half video", "image -> video", "joint")
# TubeViT's tubes at half of their distances, as in specs/digits_train.yaml, in clips of 16 frames.
TUBES = [
    {"kernel": [8, 8, 8], "stride": [8, 16, 16]},
    {"kernel": [16, 4, 4], "stride": [6, 16, 16], "offset": [0, 8, 8]},
    {"kernel": [4, 12, 12], "stride": [8, 16, 16], "offset": [0, 16, 16]},
    {"kernel": [1, 16, 16], "stride": [8, 16, 16]},
]
COLOURS = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}
FLIP = {"few-shot": 0.0, "weizmann": 0.5, "ut": 0.5}  # a digit that moves to the left must go on doing so
# Which arms there are of which model; the frozen tower knows digits, and nothing of people.
TRIALS: dict[str, dict[str, tuple[str, ...]]] = {
    "few-shot": {"tubevit": ARMS, "gated": ("video only", "joint"), "dualpath": ("video only", "joint")},
    "weizmann": {"tubevit": ("video only", "image -> video", "joint")},
    "ut": {"tubevit": ("video only", "image -> video", "joint")},
}

Values = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """What every arm may spend: optimizer steps, and clips in each of them."""

    steps: int
    batch: int = 32
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class Trial:
    """One run: an arm of a model on a case."""

    case: Case
    model: str
    arm: str
    budget: Budget
    folder: Path

    @property
    def key(self) -> Values:
        """What a row is known by."""
        case = {name: value for name, value in asdict(self.case).items() if name not in ("train", "test")}
        return {**case, "model": self.model, "arm": self.arm, **asdict(self.budget)}

    def stages(self) -> list[TrainSpec]:
        """What is trained, one after the other: together the budget, but for the half the control lacks."""
        steps, batch, run = self.budget.steps, self.budget.batch, _folder(self.key)
        videos = {"actions": self._videos("train")}
        pictures = {"pictures": self._pictures("train")}
        if self.arm == "video only":
            return [self._stage(run, videos, steps, batch)]
        if self.arm == "half video":
            return [self._stage(run, videos, steps, batch // 2)]
        if self.arm == "joint":
            return [self._stage(run, {**videos, **pictures}, steps, batch)]
        # Pictures are learned once for all cases of a seed.
        shared = {**asdict(self.budget), "model": self.model, "seed": self.case.seed}
        first = self._stage(
            _folder({"pictures": corpora.PICTURES[self.case.corpus], **shared}), pictures, steps // 2, batch
        )
        start = f"{first.output.path}/model"
        return [first, self._stage(run, videos, steps - steps // 2, batch, checkpoint=start)]

    def test(self, stage: TrainSpec) -> EvaluateSpec:
        """Of the case's videos, and of pictures, what the stage has a head for."""
        data = {"actions": self._videos("test"), "pictures": self._pictures("test")}
        model = {**stage.model.model_dump(mode="json"), "checkpoint": f"{stage.output.path}/model"}
        spec = load(
            {
                "version": 1, "kind": "evaluate", "output": {"path": str(self.folder / "scores")},
                "data": {name: data[name] for name in stage.data}, "model": model,
            }
        )  # fmt: skip
        assert isinstance(spec, EvaluateSpec)
        return spec

    def run(self) -> Values:
        """Train and test: the row."""
        begun = time.process_time()
        found: Values = {}
        logged: list[Row] = []
        learned_from: set[str] = set()
        tested_on: set[str] = set()
        for stage in self.stages():
            place = Path(stage.output.path)
            # Of what was killed nothing is taken over but its own checkpoint; pictures may serve several.
            if "actions" in stage.data or not (place / "model" / "model.safetensors").exists():
                place.mkdir(parents=True, exist_ok=True)
                train(stage, place, logged.append)
            test = self.test(stage)
            learned_from |= corpora.learned_groups(stage)
            tested_on |= corpora.tested_groups(test)
            found |= evaluate(test)
        assert not learned_from & tested_on, f"learned from and tested on: {learned_from & tested_on}"
        shutil.rmtree(place)
        actions, pictures = found["actions"], found.get("pictures")
        return {
            **self.key,
            "learned": logged[-1]["accuracy/actions"],
            "pictures": pictures["top1"] if pictures else None,
            "videos": actions["videos"],
            "right": sum(row[k] for k, row in enumerate(actions["confusion"])),
            **(few_shot.parts(actions) if self.case.corpus == "few-shot" else {}),
            "cpu_seconds": round(time.process_time() - begun, 1),
        }

    def _videos(self, part: str) -> Values:
        split = list(self.case.train) if part == "train" else self.case.test
        return {"shards": str(self.folder / self.case.corpus / part / "shards" / "video"), "split": split}

    def _pictures(self, part: str) -> Values:
        """DualPath takes no images, but motionless clips."""
        still = self.model != "dualpath"
        shards = self.folder / corpora.PICTURES[self.case.corpus] / part / "shards"
        return {
            "shards": str(shards / ("image" if still else "video")),
            "split": few_shot.STILLS if still else few_shot.MOTIONLESS,
        }

    def _stage(
        self, name: str, data: Values, steps: int, batch: int, checkpoint: str | None = None
    ) -> TrainSpec:
        seed = self.case.seed
        spec = load(
            {
                "version": 1, "kind": "train", "data": data,
                "model": {**models(self.folder)[self.model], "seed": seed, "checkpoint": checkpoint},
                "recipe": {
                    "steps": steps, "batch": batch, "seed": seed,
                    "optimizer": {
                        "learning_rate": self.budget.learning_rate, "weight_decay": 0.05,
                        "warm_up_steps": steps // 10,
                    },
                    "augment": {**COLOURS, "flip": FLIP[self.case.corpus]},
                },
                "checkpoints": {"every_steps": 100, "keep": 1},
                "output": {"path": str(self.folder / "runs" / name)},
            }
        )  # fmt: skip
        assert isinstance(spec, TrainSpec)
        return spec


def _folder(key: Values) -> str:
    """The name of a run's folder: another for whatever is another run."""
    return "_".join(str(value) for value in key.values()).replace(" ", "-").replace("->", "to")


def models(folder: Path) -> dict[str, Values]:
    """What is trained, as a spec says it."""
    clip = {
        "arch": str(digits_tower.arch(digits_tower.load())),
        "pretrained": str(folder / "digits_tower.safetensors"),
    }
    return {
        "tubevit": {"name": "tubevit-nano", "tubes": TUBES},
        "gated": {"name": "gated-nano", "tubes": TUBES, "clip": clip},
        "dualpath": {"name": "dualpath-b16", "clip": clip},
    }


def cut(folder: Path, data: Path, corpus: str) -> list[str]:
    """Shards of a corpus and of its pictures; the splits that it can be tested on."""
    wanted = [one for name, one in models(folder).items() if name in TRIALS[corpus]]
    if any("clip" in one for one in wanted):
        digits_tower.weights(folder)
    for name in dict.fromkeys((corpora.PICTURES[corpus], corpus)):
        splits = corpora.cut(folder, name, data, wanted)
    return splits


def trials(cases: list[Case], names: list[str], budget: Budget, folder: Path) -> list[Trial]:
    """Seed by seed, so that what is stopped early has whole ones; in each, all arms of a case in turn."""
    found = [
        Trial(case, model, arm, budget, folder)
        for case in cases
        for model, arms in TRIALS[case.corpus].items()
        if model in names
        for arm in arms
    ]
    return sorted(found, key=lambda trial: trial.case.seed)


def read(path: Path) -> list[Values]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--folder", type=Path, default=Path("runs/joint"))
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--model", nargs="+", choices=TRIALS["few-shot"], default=list(TRIALS["few-shot"]))
    parser.add_argument("--shots", type=int, nargs="+", default=[10, 5], help="training videos of a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder, budget = arguments.folder.absolute(), Budget(arguments.steps)
    path = folder / "rows.jsonl"
    mine = []
    for corpus in arguments.only:
        splits = cut(folder, arguments.data.absolute(), corpus)
        cases = corpora.cases(corpus, arguments.seeds, arguments.shots, splits)
        for trial in trials(cases, arguments.model, budget, folder):
            rows = [row for row in read(path) if trial.key.items() <= row.items()]
            if not rows:
                rows = [trial.run()]
                with path.open("a") as file:
                    file.write(json.dumps(rows[0]) + "\n")
                out.print(", ".join(f"{name} {value}" for name, value in rows[0].items()))
            mine += rows
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    out.print(
        f"{time.strftime('%Y-%m-%d')}  {versions}, {arguments.threads} threads of {os.cpu_count()} cores"
    )
    print(paired.tables(mine))


if __name__ == "__main__":
    main()
