"""Do the models learn to see motion? Each is trained on moving digits and tested on held-out ones.

    python -m benchmarks.learn [--model NAME ...] [--clips 5000] [--epochs 15] [--minutes 10] [--folder DIR]

The classes are `benchmarks.digits`' eight motions. One frame tells nothing of them, and the mean of what is
seen in several only half. Two controls say whether that holds: a network that is given one frame, and one
that takes the mean of eight, trained end to end. They must stay near 1/8 and 1/2; a model of motion need not.

Towers that stay frozen are `benchmarks.digits_tower`'s, trained on still digits. Videos and weights are
made in the first run and kept in --folder.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import digits
from benchmarks.digits_tower import frozen
from models import plans
from models.gated import Gated
from models.model import Model
from models.tubevit import TubeTrunk, TubeViT
from pipeline.plan import Plan, Tube

out = Console(width=140)
CLASSES = len(digits.MOTIONS)
CANVAS = plans.canvas(digits.FRAMES, (digits.SIZE_PX, digits.SIZE_PX), "area")
TUBES = plans.tubes(CANVAS, plans.TUBEVIT)
KEY_FRAMES = plans.clip(CANVAS, patch=16, every=4)

Tubes = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear warm-up and a cosine to zero; no weight decay on what is no matrix."""

    epochs: int = 15
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warm_up: float = 0.1  # of all steps
    clip_norm: float = 1.0
    minutes: float = math.inf  # after these it stops, wherever it is


class Frames(Model):
    """A control: a convolutional network on each of `count` whole frames, their mean, a linear head.

    It sees where things are (no pooling in space), so that it can tell all that one frame, or all of them
    without their order, has to say.
    """

    def __init__(self, count: int, dim: int = 128) -> None:
        whole = (1, digits.SIZE_PX, digits.SIZE_PX)
        every = (digits.FRAMES // count, *whole[1:])
        frame = Tube(name="frame", kernel=whole, stride=every, canvas=CANVAS)
        super().__init__(Plan(tubes=(frame,)), None, dim, CLASSES)
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in ((3, 32, 7, 4), (32, 64, 3, 2), (64, 128, 3, 2)):
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
            layers += [convolution, nn.GroupNorm(8, outputs), nn.GELU()]
        places = (digits.SIZE_PX // 16) ** 2
        layers += [nn.Flatten(), nn.Linear(places * 128, dim), nn.GELU(), nn.Linear(dim, dim)]
        self.encoder = nn.Sequential(*layers)

    def embed(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        frames_BFHWC = tubes["frame"].flatten(1, 4)
        x_bCHW = frames_BFHWC.flatten(0, 1).movedim(-1, 1).float() / 128 - 1
        return self.encoder(x_bCHW).unflatten(0, (len(frames_BFHWC), -1)).mean(1)


# What is compared: a model, given the folder of the frozen towers' weights.
CONTENDERS: dict[str, Callable[[Path], Model]] = {
    "one frame (control)": lambda folder: Frames(1),
    "mean of 8 frames (control)": lambda folder: Frames(8),
    "frozen CLIP, mean of 8": lambda folder: frozen(folder, KEY_FRAMES, CLASSES),
    "tubevit": lambda folder: TubeViT(TubeTrunk(TUBES, 96, 4, 4), num_classes=CLASSES),
    "gated": lambda folder: Gated(
        TUBES.union(KEY_FRAMES),
        frozen(folder, KEY_FRAMES),
        TubeTrunk(TUBES, 96, 4, 4),
        (1, 2, 3),
        num_classes=CLASSES,
    ),
}


def fit(model: Model, tubes: Tubes, labels: np.ndarray, recipe: Recipe, seed: int, say: Callable) -> int:
    """Train in place; how many epochs. `say` is told of each: its number, mean loss, accuracy as it went."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    steps = recipe.epochs * (len(labels) // recipe.batch)
    warm = max(1, int(recipe.warm_up * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * k / steps))
    )
    order = np.random.default_rng(seed)
    begun = time.monotonic()
    for epoch in range(recipe.epochs):
        model.train()
        losses, hits = [], 0
        shuffled = order.permutation(len(labels))[: len(labels) // recipe.batch * recipe.batch]
        for chosen in shuffled.reshape(-1, recipe.batch):
            wanted = torch.from_numpy(labels[chosen])
            logits = model(take(tubes, chosen))
            loss = functional.cross_entropy(logits, wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            hits += int((logits.argmax(1) == wanted).sum())
        say(epoch, sum(losses) / len(losses), hits / len(shuffled))
        if time.monotonic() - begun > 60 * recipe.minutes:
            return epoch + 1
    return recipe.epochs


def accuracy(model: Model, tubes: Tubes, labels: np.ndarray, batch: int = 250) -> float:
    model.eval()
    with torch.inference_mode():
        parts = np.array_split(np.arange(len(labels)), math.ceil(len(labels) / batch))
        hits = [(model(take(tubes, part)).argmax(1).numpy() == labels[part]).sum() for part in parts]
    return float(sum(hits)) / len(labels)


def take(tubes: Tubes, chosen: np.ndarray) -> dict[str, Tensor]:
    """A batch of clips."""
    return {name: torch.from_numpy(x[chosen]) for name, x in tubes.items()}


def data(folder: Path, clips: int, seed: int) -> Path:
    """The folder of so many videos; they are made if they are not there."""
    place = folder / f"{clips}_{seed}"
    if not (place / "clips.csv").is_file():
        out.print(f"writing {clips} videos to {place}")
        digits.write(place, clips, seed)
    return place


def row(
    name: str, model: Model, splits: Mapping[digits.Split, tuple[Tubes, np.ndarray]], recipe: Recipe
) -> list[str]:
    """Train and test one contender: its line of the table."""
    begun = time.monotonic()

    def say(epoch: int, loss: float, accuracy: float) -> None:
        seconds = time.monotonic() - begun
        out.print(f"{name}: epoch {epoch + 1}, loss {loss:.3f}, {accuracy:.1%} right, {seconds:.0f} s")

    train, held_out = splits["train"], splits["held-out"]
    epochs = fit(model, *train, recipe, 0, say)
    seconds = time.monotonic() - begun
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return [
        name,
        str(model.plan.tokens),
        f"{sum(p.numel() for p in parameters):,}",
        f"{trained:,}",
        str(epochs),
        f"{seconds:.0f}",
        f"{accuracy(model, *train):.1%}",
        f"{accuracy(model, *held_out):.1%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--clips", type=int, default=5000, help="videos, a fifth of them held out")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--minutes", type=float, default=math.inf, help="of training, at most, for each")
    parser.add_argument("--folder", type=Path, default=Path("runs/digits"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(epochs=arguments.epochs, minutes=arguments.minutes)
    place = data(arguments.folder, arguments.clips, arguments.seed)
    models = {}
    for name in arguments.model:
        torch.manual_seed(arguments.seed)
        models[name] = CONTENDERS[name](arguments.folder)
    # Videos are decoded once, for all of them.
    plan = functools.reduce(Plan.union, [model.plan for model in models.values()])
    read = {split: digits.read(place, plan, split) for split in digits.SPLITS}
    table = Table(title=f"motions of held-out digits, {arguments.clips} clips, fp32", title_justify="left")
    for column in ("model", "tokens", "params", "trained", "epochs", "seconds", "train", "held-out"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, model in models.items():
        splits = {split: (plan.take(tubes, model.plan), labels) for split, (tubes, labels) in read.items()}
        torch.manual_seed(arguments.seed)
        table.add_row(*row(name, model, splits, recipe))
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {arguments.threads} threads"
    out.print(f"{time.strftime('%Y-%m-%d')}  {versions} of {os.cpu_count()} cores")
    out.print(table)


if __name__ == "__main__":
    main()
