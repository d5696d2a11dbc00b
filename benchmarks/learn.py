"""Do the models learn to see motion? Each is trained from scratch on moving digits, and tested on held-out ones.

    python -m benchmarks.learn [--model NAME ...] [--clips 5000] [--epochs 20] [--minutes 10] [--folder runs/digits]

Of `benchmarks.digits`: eight motions, no two of them told apart by one frame, nor by the mean of what is seen in
several. Two controls say whether that holds: a network that is given one frame, and one that takes the mean of
eight, trained end to end. They must stay near 1/8 and 1/2; a model of motion has no such ceiling.

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

from benchmarks import digits
from models import plans
from models.tubevit import TubeViT
from pipeline.plan import Plan, Tube

out = Console(width=140)
CLASSES = len(digits.MOTIONS)
CANVAS = plans.canvas(digits.FRAMES, (digits.SIZE_PX, digits.SIZE_PX), "area")

Tubes = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear warm-up and a cosine to zero; no weight decay on what is no matrix."""

    epochs: int = 20
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warm_up: float = 0.1  # of all steps
    clip_norm: float = 1.0
    minutes: float = math.inf  # after these it stops, wherever it is


class Frames(nn.Module):
    """A control: a convolutional network on each of `count` whole frames, the mean of what it says, a linear head.

    It sees where things are (no pooling in space), so that it can tell all that one frame, or all of them
    without their order, has to say.
    """

    def __init__(self, count: int, dim: int = 128) -> None:
        super().__init__()
        whole = (1, digits.SIZE_PX, digits.SIZE_PX)
        every = (digits.FRAMES // count, *whole[1:])
        self.plan = Plan(tubes=(Tube(name="frame", kernel=whole, stride=every, canvas=CANVAS),))
        widths = (3, 32, 64, 128, 128)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.GELU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(dim), nn.GELU(), nn.Linear(dim, dim))
        self.head = nn.Linear(dim, CLASSES)
        self.encoder(torch.zeros(1, 3, digits.SIZE_PX, digits.SIZE_PX))

    def forward(self, tubes: Mapping[str, Tensor]) -> Tensor:
        frames_BFHWC = tubes["frame"].flatten(1, 4)
        x_bCHW = frames_BFHWC.flatten(0, 1).movedim(-1, 1).float() / 128 - 1
        return self.head(self.encoder(x_bCHW).unflatten(0, (len(frames_BFHWC), -1)).mean(1))


# What is compared: a model, given the folder of the frozen towers' weights.
CONTENDERS: dict[str, Callable[[Path], nn.Module]] = {
    "one frame (control)": lambda folder: Frames(1),
    "mean of 8 frames (control)": lambda folder: Frames(8),
    "tubevit": lambda folder: TubeViT(plans.tubevit(CANVAS), 96, 4, 4, num_classes=CLASSES),
}


@dataclass(frozen=True)
class Result:
    train_accuracy: float
    held_out_accuracy: float
    seconds: float
    epochs: int


def fit(model: nn.Module, tubes: Tubes, labels: np.ndarray, recipe: Recipe, seed: int, say: Callable) -> int:
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
        for chosen in order.permutation(len(labels))[: steps // recipe.epochs * recipe.batch].reshape(
            -1, recipe.batch
        ):
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
        say(epoch, sum(losses) / len(losses), hits / len(losses) / recipe.batch)
        if time.monotonic() - begun > 60 * recipe.minutes:
            return epoch + 1
    return recipe.epochs


def accuracy(model: nn.Module, tubes: Tubes, labels: np.ndarray, batch: int = 250) -> float:
    model.eval()
    with torch.inference_mode():
        parts = np.array_split(np.arange(len(labels)), math.ceil(len(labels) / batch))
        hits = [(model(take(tubes, part)).argmax(1).numpy() == labels[part]).sum() for part in parts]
    return float(sum(hits)) / len(labels)


def take(tubes: Tubes, chosen: np.ndarray) -> dict[str, Tensor]:
    """A batch of clips."""
    return {name: torch.from_numpy(x[chosen]) for name, x in tubes.items()}
