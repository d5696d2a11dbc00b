"""What describes a model at rest: its settings, and the numbers that `tubelet models` prints. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self, TypedDict, cast

from pydantic import NonNegativeInt, PositiveInt, model_validator

from pipeline.plan import Filter, Frozen, Offsets, Sizes

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
Kernels = Literal["central", "inflate"]
Positions = Literal["sincos", "literal"]
Variant = Literal[
    "joint",
    "factorised_encoder",
    "factorised_self_attention",
    "factorised_dot_product",
    "frame_mean",
]
Classes = PositiveInt | dict[str, PositiveInt]


class TubeConfig(Frozen):
    """One tube of TubeViT (arXiv:2212.03229, sections 3.1 and 3.4), all in (T, H, W) frames and pixels.

    stride: from one token to the next.
    space_to_depth: (k_t, k_h, k_w): the kernel gives dim / (k_t k_h k_w) channels at so many times as many
        places, stride / k apart, and the neighbours' channels are joined: as many tokens, of larger tubes.
    """

    kernel: Sizes
    stride: Sizes
    offset: Offsets = (0, 0, 0)
    space_to_depth: Sizes = (1, 1, 1)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if any(stride % k for stride, k in zip(self.stride, self.space_to_depth, strict=True)):
            raise ValueError(
                f"stride {self.stride} is no multiple of space_to_depth {self.space_to_depth}; "
                "the tube's places lie stride / space_to_depth apart"
            )
        return self

    @property
    def step(self) -> tuple[int, int, int]:
        """From one place of the kernel to the next."""
        t, h, w = (stride // k for stride, k in zip(self.stride, self.space_to_depth, strict=True))
        return t, h, w

    @property
    def extent(self) -> tuple[int, int, int]:
        """The frames and pixels that one token reaches over, from the offset's origin on."""
        t, h, w = (
            offset + (k - 1) * step + kernel
            for offset, k, step, kernel in zip(
                self.offset, self.space_to_depth, self.step, self.kernel, strict=True
            )
        )
        return t, h, w


class ClipConfig(Frozen):
    """Which frozen CLIP image tower, with which weights, on which frames.

    `pretrained` is an open_clip tag ("laion2b_s34b_b88k"), the path of a local checkpoint, or None for
    random weights. Every `every`-th sampled frame is a key frame, the first one included.
    """

    # An open_clip ViT, SigLIP's included, or a config file like open_clip's (.json); None: the model's own.
    arch: str | None = None
    pretrained: str | None = None
    every: PositiveInt | None = None  # None: the model's own default, mostly 4


class InitConfig(Frozen):
    """Image weights that a video model starts from.

    weights: an open_clip tag of `arch`, or the file of a ViT in the layout of open_clip, OpenAI, Hugging Face
        (CLIP or ViT), timm or torchvision.
    arch: which open_clip image tower that is; None: a plain ViT, as timm, torchvision and Hugging Face have.
    kernels: what a kernel over several frames starts as: the image kernel at its central frame and zero
        elsewhere, or an equal share of it at each (ViViT, arXiv:2103.15691, section 3.4).
    mean, std: of the pixels (0 to 1, RGB) that a plain ViT was trained on; most of timm's have 0.5.
    """

    weights: str
    arch: str | None = None
    kernels: Kernels = "central"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


class Options(TypedDict, total=False):
    """What may be said of a model besides its name; what is left out, or None, is the preset's.

    frames, size, filter: of the clips it is for: how many frames, (height, width) in pixels, how scaled.
    clip: its frozen CLIP tower, if it has one.
    adapter_layers: the CLIP blocks that a gated model's adapters stand before.
    tubes: other tubes than TubeViT's own; for a ViViT, one.
    positions: of tubes: as TubeViT's paper means them, or as it prints them.
    init: image weights that TubeViT (also beside CLIP) or ViViT start from; not read with a checkpoint.
    tubes_from: the folder of a trained TubeViT whose tubes a grafted model carries.
    frozen_layers: how many of its CLIP blocks a grafted model leaves alone, the gate standing after them.
    num_classes: of a head; {dataset: classes} for a head each.
    probe: only heads train (a linear probe).
    """

    frames: int
    size: tuple[int, int]
    filter: Filter
    clip: ClipConfig | None
    adapter_layers: tuple[int, ...] | None
    tubes: tuple[TubeConfig, ...] | None
    positions: Positions
    init: InitConfig | None
    tubes_from: str | None
    frozen_layers: int | None
    num_classes: int | dict[str, int] | None
    probe: bool


class ModelConfig(Frozen):
    """Everything that fixes a model's structure; stored beside its weights. Made by `registry.resolve`.

    See `Options` for the fields.
    """

    name: str
    frames: PositiveInt = 32
    size: tuple[PositiveInt, PositiveInt] = (224, 224)
    filter: Filter = "area"
    clip: ClipConfig | None = None
    adapter_layers: tuple[NonNegativeInt, ...] | None = None
    num_classes: Classes | None = None
    tubes: tuple[TubeConfig, ...] | None = None
    positions: Positions = "sincos"
    init: InitConfig | None = None
    tubes_from: str | None = None
    frozen_layers: PositiveInt | None = None
    probe: bool = False

    def options(self) -> Options:
        """What gives this config again, together with its name."""
        return cast(Options, {field: value for field, value in self if field != "name"})


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
