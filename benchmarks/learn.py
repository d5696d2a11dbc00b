"""Do the models learn to see motion? Each is trained on moving digits and tested on held-out ones.

    python -m benchmarks.learn [--model NAME ...] [--clips 5000] [--epochs 10] [--minutes 10] [--folder DIR]

The classes are `benchmarks.digits`' eight motions. One frame tells nothing of them, and the mean of what is
seen in several only half. Two controls say whether that holds: a network that is given one frame, and one
that is given the mean of eight. They must stay near 1/8 and 1/2; a model of motion need not.

The papers' tubes are for pictures of 224 pixels; in these, of 64, they lie closer together.

Towers that stay frozen are `benchmarks.digits_tower`'s, trained on still digits. Videos and weights are
made in the first run and kept in --folder.
"""

from __future__ import annotations

import argparse
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

from benchmarks import digits, digits_tower
from models import plans
from models.aim import AIM
from models.clip import Clip
from models.config import TubeConfig, Variant
from models.dualpath import DualPath
from models.gated import Gated
from models.grafted import Grafted
from models.model import Model
from models.pretrained import clip_of
from models.st_adapter import STAdapter
from models.towers import Tower
from models.tubevit import TubeTrunk, TubeViT
from models.vivit import ViViT
from pipeline.cut import cut
from pipeline.plan import Canvas, Plan, Tube

out = Console(width=140)
CLASSES = len(digits.MOTIONS)
CANVAS = plans.canvas(digits.FRAMES, (digits.SIZE_PX, digits.SIZE_PX), "area")
KEY_FRAMES = plans.clip(CANVAS, patch=16, every=4)


@dataclass(frozen=True)
class Clips:
    """A split: uint8 (N, T, h, w, 3) for each canvas, and int64 (N,) motions."""

    frames: Mapping[Canvas, np.ndarray]
    labels: np.ndarray

    def batch(
        self, plan: Plan, chosen: np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The tubes and motions of some clips; with `rng`, of others made of them by `digits.altered`."""
        tubes = {tube.name: np.empty((len(chosen), *tube.shape), np.uint8) for tube in plan.tubes}
        labels = self.labels[chosen]
        for row, number in enumerate(chosen):
            frames = {canvas: self.frames[canvas][number] for canvas in plan.canvases}
            if rng is not None:
                frames, labels[row] = digits.altered(frames, labels[row], rng)
            cut(frames, plan, {name: x[row] for name, x in tubes.items()})
        return {name: torch.from_numpy(x) for name, x in tubes.items()}, torch.from_numpy(labels)


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear warm-up and a cosine to zero; no weight decay on what is no matrix."""

    epochs: int = 10
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: float = 0.1  # of all steps
    clip_norm: float = 1.0
    alter: bool = True  # show altered clips, never the same twice
    minutes: float = math.inf  # after these it stops, wherever it is


class Frames(Model):
    """A control: a convolutional network on the mean of `count` whole frames.

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
        mean_BHWC = tubes["frame"].flatten(1, 4).float().mean(1) / 128 - 1
        return self.encoder(mean_BHWC.movedim(-1, 1))


SMALL = (96, 4, 4)  # width, layers and heads of what is no tower


def closer(tubes: tuple[TubeConfig, ...]) -> tuple[TubeConfig, ...]:
    """At half their distances, but no closer than 8 frames and 16 pixels."""

    def half(stride: int, least: int) -> int:
        return min(stride, max(least, stride // 2))

    strides = [(half(t, 8), half(h, 16), half(w, 16)) for t, h, w in (tube.stride for tube in tubes)]
    return tuple(
        tube.model_copy(update={"stride": stride}) for tube, stride in zip(tubes, strides, strict=True)
    )


def tubevit(papers: tuple[TubeConfig, ...] = plans.TUBEVIT, *, interpolated: bool = False) -> Model:
    tubes = closer(papers)
    merges = {name: tube.space_to_depth for name, tube in zip(plans.tube_names(tubes), tubes, strict=True)}
    trunk = TubeTrunk(plans.tubes(CANVAS, tubes), *SMALL, merges=merges, interpolated=interpolated)
    return TubeViT(trunk, num_classes=CLASSES)


def vivit(variant: Variant) -> Model:
    tubelets = (TubeConfig(kernel=(4, 16, 16), stride=(4, 16, 16)),)
    return ViViT(plans.tubes(CANVAS, tubelets), *SMALL, variant=variant, num_classes=CLASSES)


def on_tower(make: Callable[[Tower], Model]) -> Callable[[Path], Model]:
    """A model on the frozen tower whose weights are in a folder."""

    def made(folder: Path) -> Model:
        model = make(digits_tower.arch_of())
        digits_tower.fill(clip_of(model), folder)
        return model

    return made


def gated(tower: Tower) -> Model:
    tubes = plans.tubes(CANVAS, closer(plans.TUBEVIT))
    trunk = TubeTrunk(tubes, *SMALL)
    return Gated(tubes.union(KEY_FRAMES), Clip(KEY_FRAMES, tower), trunk, (1, 2, 3), num_classes=CLASSES)


def grafted(tower: Tower) -> Model:
    first = plans.clip(CANVAS, patch=16, every=digits.FRAMES)
    tubes = plans.tubes(CANVAS, closer(plans.GRAFTED))
    merges = {tube.name: (1, 2, 2) for tube in tubes.tubes}
    return Grafted(tubes.union(first), Clip(first, tower), tubes, 2, merges=merges, num_classes=CLASSES)


# What is compared: a model, given the folder of the frozen tower's weights.
CONTENDERS: dict[str, Callable[[Path], Model]] = {
    "one frame (control)": lambda folder: Frames(1),
    "mean of 8 frames (control)": lambda folder: Frames(8),
    "CLIP, mean of 8 (baseline)": on_tower(lambda tower: Clip(KEY_FRAMES, tower, num_classes=CLASSES)),
    "tubevit": lambda folder: tubevit(),
    "tubevit-s2d": lambda folder: tubevit(plans.TUBEVIT_DEEP),
    "tubevit-core": lambda folder: tubevit(plans.TUBEVIT_CORE),
    "tubevit-interpolated": lambda folder: tubevit(interpolated=True),
    "vivit": lambda folder: vivit("joint"),
    "vivit-fe": lambda folder: vivit("factorised_encoder"),
    "vivit-fsa": lambda folder: vivit("factorised_self_attention"),
    "vivit-fdp": lambda folder: vivit("factorised_dot_product"),
    "vivit-mean (baseline)": lambda folder: vivit("frame_mean"),
    "gated": on_tower(gated),
    "grafted": on_tower(grafted),
    "dualpath": on_tower(lambda tower: DualPath(plans.dualpath(CANVAS, 16), tower, num_classes=CLASSES)),
    "aim": on_tower(lambda tower: AIM(KEY_FRAMES, tower, num_classes=CLASSES)),
    "st-adapter": on_tower(lambda tower: STAdapter(KEY_FRAMES, tower, num_classes=CLASSES)),
}


def fit(model: Model, clips: Clips, recipe: Recipe, seed: int, say: Callable) -> int:
    """Train in place; how many epochs. `say` is told of each: its number, mean loss, accuracy as it went."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    steps = recipe.epochs * (len(clips.labels) // recipe.batch)
    warm = max(1, int(recipe.warm_up * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * k / steps))
    )
    order = np.random.default_rng(seed)
    begun = time.monotonic()
    for epoch in range(recipe.epochs):
        model.train()
        losses, hits = [], 0
        shuffled = order.permutation(len(clips.labels))[: len(clips.labels) // recipe.batch * recipe.batch]
        for chosen in shuffled.reshape(-1, recipe.batch):
            tubes, wanted = clips.batch(model.plan, chosen, order if recipe.alter else None)
            logits = model(tubes)
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


def accuracy(model: Model, clips: Clips, size: int = 250) -> float:
    """The share of clips, as they are, whose motion the model names."""
    model.eval()
    parts = np.array_split(np.arange(len(clips.labels)), math.ceil(len(clips.labels) / size))
    hits = 0
    with torch.inference_mode():
        for part in parts:
            tubes, wanted = clips.batch(model.plan, part)
            hits += int((model(tubes).argmax(1) == wanted).sum())
    return hits / len(clips.labels)


def data(folder: Path, clips: int, seed: int) -> Path:
    """The folder of so many videos; they are made if they are not there."""
    place = folder / f"{clips}_{seed}"
    if not (place / "clips.csv").is_file():
        out.print(f"writing {clips} videos to {place}")
        digits.write(place, clips, seed)
    return place


def read(place: Path, canvases: list[Canvas], split: digits.Split) -> Clips:
    found = {canvas: digits.read_frames(place, canvas, split) for canvas in canvases}
    return Clips({canvas: frames for canvas, (frames, _) in found.items()}, found[canvases[0]][1])


def row(name: str, model: Model, train: Clips, held_out: Clips, recipe: Recipe) -> list[str]:
    """Train and test one contender: its line of the table."""
    begun = time.monotonic()

    def say(epoch: int, loss: float, accuracy: float) -> None:
        seconds = time.monotonic() - begun
        out.print(f"{name}: epoch {epoch + 1}, loss {loss:.3f}, {accuracy:.1%} right, {seconds:.0f} s")

    epochs = fit(model, train, recipe, 0, say)
    seconds = time.monotonic() - begun
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return [
        name,
        str(model.tokens or model.plan.tokens),
        f"{sum(p.numel() for p in parameters):,}",
        f"{trained:,}",
        str(epochs),
        f"{seconds:.0f}",
        f"{accuracy(model, train):.1%}",
        f"{accuracy(model, held_out):.1%}",
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
    # Videos are decoded once for all models.
    canvases = dict.fromkeys(canvas for model in models.values() for canvas in model.plan.canvases)
    train, held_out = (read(place, list(canvases), split) for split in digits.SPLITS)
    table = Table(title=f"motions of held-out digits, {arguments.clips} clips, fp32", title_justify="left")
    for column in ("model", "tokens", "params", "trained", "epochs", "seconds", "train", "held-out"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, model in models.items():
        torch.manual_seed(arguments.seed)
        cells = row(name, model, train, held_out, recipe)
        out.print(f"{name}: {cells[-1]} of held-out clips right")
        table.add_row(*cells)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {arguments.threads} threads"
    out.print(f"{time.strftime('%Y-%m-%d')}  {versions} of {os.cpu_count()} cores")
    out.print(table)


if __name__ == "__main__":
    main()
