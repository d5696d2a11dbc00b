"""From a resolved config to a module: the torch side of `models.create`, `check` and `describe`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models import clip_weights, plans, registry, weights
from models.clip import Clip
from models.config import ClipConfig, ModelConfig, Summary
from models.gated import Gated
from models.model import Model
from models.towers import tower
from models.tubevit import TubeTrunk, TubeViT


def build(config: ModelConfig) -> Model:
    """The module with random weights, on torch's current default device."""
    kind = registry.preset(config.name)
    plan = registry.plan(config)
    if config.clip is None:
        return TubeViT(plan, kind.dim, kind.layers, kind.heads, num_classes=config.num_classes)
    image_tower = tower(config.clip.arch)
    if config.adapter_layers is None:
        return Clip(plan, image_tower, num_classes=config.num_classes)
    canvas = plans.canvas(config.frames, config.size, config.filter)
    return Gated(
        plan,
        Clip(plans.clip(canvas, image_tower.patch, config.clip.every), image_tower),
        TubeTrunk(plans.tubevit(canvas), kind.dim, kind.layers, kind.heads),
        config.adapter_layers,
        num_classes=config.num_classes,
    )


def create(config: ModelConfig, *, checkpoint: str | Path | None, seed: int) -> Model:
    """See `models.create`."""
    if checkpoint is not None:
        config = weights.agree(config, checkpoint)
    # CLIP's weights come first: what is wrong with them shows before a large model is initialised.
    state = None
    if checkpoint is None and config.clip is not None and config.clip.pretrained is not None:
        state = clip_weights.state(config.clip)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build(config)
    model.config = config
    if checkpoint is not None:
        weights.load(model, checkpoint)
    if state is not None and config.clip is not None:
        _fit_clip(model, state, config.clip)
        _clip_of(model).load_state_dict(state, strict=False)
    return model.eval()


def check(config: ModelConfig, *, checkpoint: str | Path | None) -> None:
    """See `models.check`."""
    if checkpoint is not None:
        config = weights.agree(config, checkpoint)
    with torch.device("meta"):
        model = build(config)
    if checkpoint is not None:
        weights.check(model, checkpoint)
    elif config.clip is not None and config.clip.pretrained is not None:
        shapes = clip_weights.shapes(config.clip)
        if shapes is not None:
            _fit_clip(model, shapes, config.clip)


def describe(config: ModelConfig) -> Summary:
    """See `models.describe`."""
    with torch.device("meta"):
        model = build(config).eval()
        tubes = {tube.name: torch.empty(1, *tube.shape, dtype=torch.uint8) for tube in model.plan.tubes}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.embed(tubes)
    return Summary(
        name=config.name,
        doc=registry.preset(config.name).doc,
        tokens=model.plan.tokens,
        tubes=tuple(tube.name for tube in model.plan.tubes),
        bytes_per_clip=model.plan.bytes_per_clip,
        dim=model.dim,
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        gflops_per_view=counter.get_total_flops() / 1e9,
        images=model.image_plan is not None,
    )


def _clip_of(model: Model) -> Clip:
    """The CLIP tower of a model that has one."""
    return model if isinstance(model, Clip) else cast(Gated, model).clip


def _fit_clip(model: Model, state: dict[str, Tensor], clip: ClipConfig) -> None:
    """ValueError unless `state` fills the CLIP tower of `model` exactly; a head on it is not CLIP's."""
    expected = _clip_of(model).state_dict()
    own = {name: tensor for name, tensor in expected.items() if not name.startswith(weights.HEAD)}
    weights.fit(own, state, f"model.clip.pretrained = {clip.pretrained!r}")
