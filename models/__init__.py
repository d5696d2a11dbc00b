"""Tubes in, embeddings out: every model of the project, by name.

Names and plans are known without importing torch; `create`, `check` and `describe` import it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models import registry
from models.config import ClipConfig, Summary
from pipeline.plan import Filter, Plan

if TYPE_CHECKING:
    from models.model import Model

__all__ = ["ClipConfig", "Summary", "check", "create", "describe", "fetch", "names", "plan"]


def names() -> list[str]:
    """Every model name."""
    return list(registry.MODELS)


def plan(
    name: str,
    *,
    frames: int = 32,
    size: tuple[int, int] = (224, 224),
    filter: Filter = "area",
    clip: ClipConfig | None = None,
) -> Plan:
    """The pixels that model `name` wants of clips of `frames` frames at `size` (height, width).

    ValueError names what does not fit.
    """
    config = registry.resolve(name, frames, size, filter, clip, adapter_layers=None, num_classes=None)
    return registry.plan(config)


def create(
    name: str,
    *,
    frames: int = 32,
    size: tuple[int, int] = (224, 224),
    filter: Filter = "area",
    clip: ClipConfig | None = None,
    adapter_layers: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> Model:
    """Model `name` on the CPU, in evaluation mode; the same arguments give the same weights.

    `adapter_layers`: the CLIP blocks that a gated model's adapters stand before. `checkpoint`: a folder
    written by `models.weights.save`; then `num_classes` left at None is the checkpoint's, a head for
    another number of classes starts afresh (logged), and all else must match. CLIP's weights are in
    it too, so `clip.pretrained` is not read.
    The caller's random state is left alone. ValueError or FileNotFoundError name what is wrong.
    """
    config = registry.resolve(name, frames, size, filter, clip, adapter_layers, num_classes)
    from models import build

    return build.create(config, checkpoint=checkpoint, seed=seed)


def check(
    name: str,
    *,
    frames: int = 32,
    size: tuple[int, int] = (224, 224),
    filter: Filter = "area",
    clip: ClipConfig | None = None,
    adapter_layers: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
) -> None:
    """Raise what `create` would raise, without reading weights: names, files, keys and shapes.

    An open_clip tag is looked up but not downloaded.
    """
    config = registry.resolve(name, frames, size, filter, clip, adapter_layers, num_classes)
    from models import build

    build.check(config, checkpoint=checkpoint)


def fetch(name: str, *, clip: ClipConfig | None = None) -> None:
    """Download the open_clip weights that `create` reads into this machine's cache, or ValueError."""
    config = registry.resolve(name, 32, (224, 224), "area", clip, adapter_layers=None, num_classes=None)
    if config.clip is not None and config.clip.pretrained is not None:
        from models import clip_weights

        clip_weights.fetch(config.clip)


def describe(
    name: str,
    *,
    frames: int = 32,
    size: tuple[int, int] = (224, 224),
    filter: Filter = "area",
    clip: ClipConfig | None = None,
    adapter_layers: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> Summary:
    """Tokens, parameters and operations of model `name`, counted on the meta device: nothing is computed."""
    config = registry.resolve(name, frames, size, filter, clip, adapter_layers, num_classes)
    from models import build

    return build.describe(config)
