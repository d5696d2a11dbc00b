"""What describes a model at rest: its settings, and the numbers that `tubelet models` prints. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from pipeline.plan import Filter, Frozen

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


class ClipConfig(Frozen):
    """Which frozen CLIP image tower, with which weights, on which frames.

    `pretrained` is an open_clip tag ("laion2b_s34b_b88k"), the path of a local checkpoint, or None for
    random weights. Every `every`-th sampled frame is a key frame, the first one included.
    """

    arch: str | None = None  # an open_clip ViT; None: the model's own default
    pretrained: str | None = None
    every: PositiveInt = 4


class ModelConfig(Frozen):
    """Everything that fixes a model's structure; stored beside its weights. Made by `registry.resolve`."""

    name: str
    frames: PositiveInt
    size: tuple[PositiveInt, PositiveInt]  # (height, width) in pixels
    filter: Filter
    clip: ClipConfig | None
    adapter_layers: tuple[NonNegativeInt, ...] | None
    num_classes: PositiveInt | None


@dataclass(frozen=True)
class Summary:
    """One model in numbers. A gigaflop counts a multiplication and an addition as two operations."""

    name: str
    doc: str
    tokens: int
    tubes: tuple[str, ...]
    bytes_per_clip: int
    dim: int
    parameters: int
    trainable: int
    gflops_per_view: float
    images: bool


def suggest(value: str, choices: Iterable[str]) -> str:
    """The remedy in an error message about a name: the nearest one, or all of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(value, choices, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(choices) or '(none)'}"
