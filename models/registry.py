"""Every model there is, by name, and the one place where settings are checked. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from models import plans
from models.config import ClipConfig, ModelConfig, suggest
from models.towers import tower
from pipeline.plan import Filter, Plan


@dataclass(frozen=True)
class Preset:
    """A named model. `dim`, `layers` and `heads` are its TubeViT's (MLP 4 * dim); `arch` its default CLIP."""

    family: Literal["tubevit", "clip", "gated"]
    doc: str
    dim: int = 0
    layers: int = 0
    heads: int = 0
    arch: str | None = None


MODELS = {
    "tubevit-tiny": Preset("tubevit", "TubeViT of ViT-Ti width", 192, 12, 3),
    "tubevit-small": Preset("tubevit", "TubeViT of ViT-S width", 384, 12, 6),
    "tubevit-b16": Preset("tubevit", "TubeViT-B of the paper, independent kernels", 768, 12, 12),
    "tubevit-l16": Preset("tubevit", "TubeViT-L of the paper, independent kernels", 1024, 24, 16),
    "clip": Preset("clip", "frozen CLIP image tower on key frames, mean of frames", arch="ViT-B-16"),
    "gated-tiny": Preset("gated", "frozen CLIP + TubeViT-Ti, gated", 192, 12, 3, "ViT-B-16"),
    "gated-small": Preset("gated", "frozen CLIP + TubeViT-S, gated", 384, 12, 6, "ViT-B-16"),
    "gated-b16": Preset("gated", "frozen CLIP B/16 + TubeViT-B, gated", 768, 12, 12, "ViT-B-16"),
    "gated-l14": Preset("gated", "frozen CLIP L/14 + TubeViT-L, gated", 1024, 24, 16, "ViT-L-14"),
}


def preset(name: str) -> Preset:
    """The preset of that name, or ValueError."""
    if name not in MODELS:
        raise ValueError(f"model.name = {name!r}: no such model; {suggest(name, MODELS)}")
    return MODELS[name]


def resolve(
    name: str,
    frames: int,
    size: tuple[int, int],
    filter: Filter,
    clip: ClipConfig | None,
    adapter_layers: tuple[int, ...] | None,
    num_classes: int | None,
) -> ModelConfig:
    """Check settings against each other and fill in the preset's defaults. ValueError names what is wrong."""
    kind = preset(name)
    if type(frames) is not int or frames < 1:
        raise ValueError(f"frames = {frames!r}: must be a positive integer")
    if not isinstance(size, tuple) or len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
        raise ValueError(f"size = {size!r}: must be (height, width) in pixels, for example (224, 224)")
    if filter not in get_args(Filter):
        raise ValueError(f"filter = {filter!r}: {suggest(str(filter), get_args(Filter))}")
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise ValueError(
            f"model.num_classes = {num_classes!r}: must be a positive integer, or None for no head"
        )
    if kind.family == "tubevit" and clip is not None:
        raise ValueError(
            f"model.clip = {clip!r}: {name} has no CLIP tower; leave it out, or take a gated model"
        )
    if kind.family != "gated" and adapter_layers is not None:
        raise ValueError(f"model.adapter_layers = {adapter_layers!r}: {name} has no adapters; leave it out")
    if kind.arch is not None:
        clip = clip or ClipConfig()
        clip = clip.model_copy(update={"arch": clip.arch or kind.arch})
        depth = tower(clip.arch).layers
        if kind.family == "gated":
            adapter_layers = _adapter_layers(adapter_layers, depth)
    return ModelConfig(
        name=name,
        frames=frames,
        size=size,
        filter=filter,
        clip=clip,
        adapter_layers=adapter_layers,
        num_classes=num_classes,
    )


def plan(config: ModelConfig) -> Plan:
    """The pixels that the model wants."""
    canvas = plans.canvas(config.frames, config.size, config.filter)
    if config.clip is None:
        return plans.tubevit(canvas)
    patch = tower(config.clip.arch).patch
    if preset(config.name).family == "clip":
        return plans.clip(canvas, patch, config.clip.every)
    return plans.gated(canvas, patch, config.clip.every)


def _adapter_layers(layers: tuple[int, ...] | None, depth: int) -> tuple[int, ...]:
    """Blocks that an adapter stands before. Default: from a third of the depth on, every sixth of it.

    So 4, 6, 8, 10 of 12 and 8, 12, 16, 20 of 24. The first third builds no graph; what an adapter adds
    still passes through at least one frozen block, which carries it to the class token.
    """
    if layers is None:
        return tuple(range(depth // 3, depth, max(1, depth // 6)))
    wrong = [layer for layer in layers if type(layer) is not int or not 0 <= layer < depth]
    if wrong or not layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"model.adapter_layers = {layers!r}: must be different blocks out of 0..{depth - 1}, at least one"
        )
    return tuple(sorted(layers))
