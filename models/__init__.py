"""Tubes in, embeddings out: every model of the project, by name.

Names and plans are known without importing torch; `create`, `check` and `describe` import it. What may be
said of a model besides its name is listed in `Options`, and taken by all functions here as keyword arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from models import registry
from models.config import ClipConfig, InitConfig, Options, Summary, TubeConfig
from pipeline.plan import Plan

if TYPE_CHECKING:
    from models.model import Model

__all__ = [
    "ClipConfig",
    "InitConfig",
    "Options",
    "Summary",
    "TubeConfig",
    "blank",
    "check",
    "create",
    "describe",
    "fetch",
    "image_plan",
    "names",
    "plan",
]


def names() -> list[str]:
    """Every model name."""
    return list(registry.MODELS)


def plan(name: str, **options: Unpack[Options]) -> Plan:
    """The pixels that model `name` wants of a clip. ValueError names what does not fit."""
    return registry.plan(registry.resolve(name, options))


def image_plan(name: str, **options: Unpack[Options]) -> Plan | None:
    """The pixels that it wants of a still image; None if it takes none."""
    return registry.image_plan(registry.resolve(name, options))


def create(
    name: str, *, checkpoint: str | Path | None = None, seed: int = 0, **options: Unpack[Options]
) -> Model:
    """Model `name` on the CPU, in evaluation mode; the same arguments give the same weights.

    checkpoint: a folder written by `models.weights.save`; then `num_classes` left at None is the
    checkpoint's, a head for another number of classes starts afresh (logged), and all else must match. All
    weights are in it, so those that `clip.pretrained`, `init` and `tubes_from` name are not read.
    The caller's random state is left alone. ValueError or FileNotFoundError name what is wrong.
    """
    config = registry.resolve(name, options)
    from models import build

    return build.create(config, checkpoint=checkpoint, seed=seed)


def blank(name: str, **options: Unpack[Options]) -> Model:
    """The same model with random weights: none are read or downloaded, whatever `options` name.

    ValueError names what is wrong.
    """
    config = registry.resolve(name, options)
    from models import build

    return build.build(config).eval()


def check(name: str, *, checkpoint: str | Path | None = None, **options: Unpack[Options]) -> None:
    """Raise what `create` would raise, without reading weights: names, files, keys and shapes.

    An open_clip tag is looked up but not downloaded.
    """
    config = registry.resolve(name, options)
    from models import build

    build.check(config, checkpoint=checkpoint)


def fetch(name: str, **options: Unpack[Options]) -> None:
    """Download the open_clip weights that `create` reads into this machine's cache, or ValueError."""
    config = registry.resolve(name, options)
    from models import clip_weights

    if config.clip is not None and config.clip.pretrained is not None:
        clip_weights.fetch(config.clip)
    if config.init is not None and config.init.arch is not None:
        clip_weights.fetch(ClipConfig(arch=config.init.arch, pretrained=config.init.weights))


def describe(name: str, **options: Unpack[Options]) -> Summary:
    """Tokens, parameters and operations of model `name`, counted on the meta device: nothing is computed."""
    config = registry.resolve(name, options)
    from models import build

    return build.describe(config)
