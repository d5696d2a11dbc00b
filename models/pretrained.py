"""Weights from elsewhere in a new model: of a CLIP tower, an image ViT, the tubes of a small TubeViT."""

from __future__ import annotations

from torch import Tensor

from models import clip_weights, image_weights, tubevit, vivit, weights
from models.clip import Clip
from models.config import ModelConfig
from models.gated import Gated
from models.grafted import Grafted
from models.model import Model
from models.tubevit import TubeTrunk, TubeViT
from models.vivit import ViViT

# What each of `model.clip.pretrained`, `model.init` and `model.tubes_from` gave.
Found = dict[str, dict[str, Tensor]]


def read(config: ModelConfig) -> Found:
    """All weights that the config names. One-line ValueError or FileNotFoundError; never random ones."""
    found: Found = {}
    if config.clip is not None and config.clip.pretrained is not None:
        found["clip"] = clip_weights.state(config.clip)
    if config.init is not None:
        found["init"] = image_weights.read(config.init)
    if config.tubes_from is not None:
        found["tubes"] = weights.tubes(config.tubes_from, "model.tubes_from")
    return found


def fill(model: Model, found: Found) -> None:
    """Put them where they belong, strictly: ValueError names what does not fit."""
    config = _config(model)
    if "clip" in found and config.clip is not None:
        clip = clip_of(model)
        fit_clip(clip, found["clip"], config)
        clip.load_state_dict(found["clip"], strict=False)
    if "init" in found and config.init is not None:
        if isinstance(model, ViViT):
            vivit.inflate(model, found["init"], config.init.kernels)
        else:
            tubevit.inflate(trunk_of(model), found["init"], config.init.kernels)
    if "tubes" in found and isinstance(model, Grafted):
        _fit_tubes(model, found["tubes"])
        model.tokenizer.load_state_dict(found["tubes"])


def check(model: Model) -> None:
    """Raise what `read` and `fill` would raise, as far as that shows without reading large files."""
    config = _config(model)
    if config.clip is not None and config.clip.pretrained is not None:
        shapes = clip_weights.shapes(config.clip)
        if shapes is not None:
            fit_clip(clip_of(model), shapes, config)
    if config.init is not None:
        image_weights.check_source(config.init)
    if config.tubes_from is not None and isinstance(model, Grafted):
        _fit_tubes(model, weights.tubes(config.tubes_from, "model.tubes_from"))


def clip_of(model: Model) -> Clip:
    """The CLIP tower of a model that has one."""
    clip = model if isinstance(model, Clip) else model.get_submodule("clip")
    assert isinstance(clip, Clip)
    return clip


def trunk_of(model: Model) -> TubeTrunk:
    """The trunk of a TubeViT, or of the one beside a CLIP."""
    assert isinstance(model, TubeViT | Gated)
    return model.trunk


def fit_clip(clip: Clip, state: dict[str, Tensor], config: ModelConfig) -> None:
    """ValueError unless `state` fills the tower exactly; a head on it is not CLIP's."""
    assert config.clip is not None
    own = {name: x for name, x in clip.state_dict().items() if not name.startswith(weights.HEAD)}
    weights.fit(own, state, f"model.clip.pretrained = {config.clip.pretrained!r}")


def _fit_tubes(model: Grafted, state: dict[str, Tensor]) -> None:
    source = f"model.tubes_from = {_config(model).tubes_from!r}"
    weights.fit(model.tokenizer.state_dict(), state, source)


def _config(model: Model) -> ModelConfig:
    assert model.config is not None
    return model.config
