"""The part of a job spec that says which model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt

import models
from models import ClipConfig, InitConfig, TubeConfig
from models.config import Positions
from models.towers import is_file
from pipeline.corpus import Media
from pipeline.errors import SpecListError
from pipeline.plan import Frozen, Plan
from pipeline.sampling import Sampling
from pipeline.storage import locate

Precision = Literal["auto", "fp32", "bf16"]  # auto is bf16 on a GPU and fp32 on a CPU


class Architecture(Frozen):
    """A model by name, as far as its plans go: `tubelet models` lists them.

    tubes: others than TubeViT's or ViViT's own: kernel, stride, offset, space_to_depth, each (T, H, W).
    """

    name: str
    clip: ClipConfig | None = None
    tubes: tuple[TubeConfig, ...] | None = None

    def options(self, sampling: Sampling) -> models.Options:
        """What is said of the model, for clips that are sampled so."""
        return {
            "frames": sampling.frames,
            "size": (sampling.height_px, sampling.width_px),
            "filter": sampling.filter,
            "clip": self.clip,
            "tubes": self.tubes,
        }

    def plans(self, sampling: Sampling, field: str = "sampling") -> dict[Media, Plan]:
        """What a video, and an image if the model takes any, is cut into. field: of the spec, where it is."""
        options = Architecture.options(self, sampling)
        try:
            video, image = models.plan(self.name, **options), models.image_plan(self.name, **options)
        except ValueError as error:
            text = str(error)
            # What the models call frames, size and filter is this spec's sampling.
            owner = "" if text.startswith("model.") else f"{field}."
            raise SpecListError([owner + text]) from None
        return {"video": video} if image is None else {"video": video, "image": image}


class Weighted(Architecture):
    """A model with its weights; see models.Options for what is not described here.

    checkpoint: a folder written by training, or package://models/quickstart, which comes along; None starts
        from `clip.pretrained`, `init` and `tubes_from` and, elsewhere, `seed`.
    """

    adapter_layers: tuple[NonNegativeInt, ...] | None = None
    positions: Positions = "sincos"
    init: InitConfig | None = None
    tubes_from: str | None = None
    frozen_layers: PositiveInt | None = None
    checkpoint: str | None = None
    seed: NonNegativeInt = 0

    @property
    def saved(self) -> str | None:
        """The checkpoint's folder on this machine. SpecError if no such package is installed."""
        return saved(self.checkpoint)

    def options(self, sampling: Sampling) -> models.Options:
        return {
            **super().options(sampling),
            "adapter_layers": self.adapter_layers,
            "positions": self.positions,
            "init": self.init,
            "tubes_from": self.tubes_from,
            "frozen_layers": self.frozen_layers,
        }

    def absolute(self) -> Self:
        """The same with paths that mean the same in every process; weights may be one, or a tag."""
        clip, init = self.clip, self.init
        if clip is not None:
            clip = clip.model_copy(update=clip_at_home(clip.arch, clip.pretrained))
        if init is not None and Path(init.weights).exists():
            init = init.model_copy(update={"weights": absolute(init.weights)})
        paths = {"checkpoint": absolute(self.checkpoint), "tubes_from": absolute(self.tubes_from)}
        return self.model_copy(update={"clip": clip, "init": init, **paths})


class Model(Weighted):
    """A model at work.

    batch_views: views in one forward pass.
    precision: auto is bf16 on a GPU and fp32 on a CPU.
    """

    batch_views: PositiveInt = 16
    precision: Precision = "auto"


def in_bfloat16(precision: Precision, device: str) -> bool:
    """Whether forward passes run under bfloat16 autocast on this kind of device."""
    return precision == "bf16" or (precision == "auto" and device == "cuda")


def saved(checkpoint: str | None, field: str = "model.checkpoint") -> str | None:
    """The folder of a checkpoint: one that a package ships (package://NAME/FOLDER) is found where that is."""
    if checkpoint is None or not checkpoint.startswith("package://"):
        return checkpoint
    return locate(checkpoint, field).path


def clip_at_home(arch: str | None, pretrained: str | None) -> dict[str, str | None]:
    """Both fields of a CLIP tower, with paths that mean the same in every process; weights may be a tag."""
    return {
        "arch": absolute(arch) if is_file(arch) else arch,
        "pretrained": absolute(pretrained) if pretrained and Path(pretrained).exists() else pretrained,
    }


def absolute(path: str | None) -> str | None:
    """A path that does not depend on the working directory; a URI, and None, as they are."""
    return path if path is None or "://" in path else locate(path).path
