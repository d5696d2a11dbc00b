"""From a resolved config to a module: the torch side of `models.create`, `check` and `describe`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import plans, pretrained, registry, weights
from models.aim import AIM
from models.clip import Clip
from models.config import ModelConfig, Summary
from models.dualpath import DualPath
from models.gated import Gated
from models.grafted import Grafted
from models.model import Model
from models.st_adapter import STAdapter
from models.towers import Tower, tower
from models.tubevit import TubeTrunk, TubeViT
from models.vivit import ViViT
from pipeline.plan import Canvas, Sizes


def build(config: ModelConfig) -> Model:
    """The module with random weights, on torch's current default device."""
    kind = registry.preset(config.name)
    plan = registry.plan(config)
    canvas = plans.canvas(config.frames, config.size, config.filter)
    classes = config.num_classes
    model: Model
    if kind.family == "tubevit":
        model = TubeViT(_trunk(config, canvas), num_classes=classes)
    elif kind.family == "vivit":
        model = ViViT(
            plan,
            kind.dim,
            kind.layers,
            kind.heads,
            variant=kind.variant,
            activation=registry.activation(config),
            norm_pre=_norm_pre(config),
            num_classes=classes,
        )
    elif kind.family == "clip":
        model = Clip(plan, _tower(config), num_classes=classes)
    elif kind.family == "gated":
        assert config.adapter_layers is not None
        model = Gated(
            plan, _clip(config, canvas), _trunk(config, canvas), config.adapter_layers, num_classes=classes
        )
    elif kind.family == "grafted":
        assert config.frozen_layers is not None
        model = Grafted(
            plan,
            _clip(config, canvas),
            plans.tubes(canvas, registry.tubes(config)),
            config.frozen_layers,
            merges=_merges(config),
            literal_positions=config.positions == "literal",
            carried=config.tubes_from is not None,
            num_classes=classes,
        )
    elif kind.family == "dualpath":
        model = DualPath(plan, _tower(config), num_classes=classes)
    elif kind.family == "aim":
        model = AIM(plan, _tower(config), num_classes=classes)
    else:
        model = STAdapter(plan, _tower(config), num_classes=classes)
    if config.probe:
        model.train_only_heads()
    model.config = config
    return model


def create(config: ModelConfig, *, checkpoint: str | Path | None, seed: int) -> Model:
    """See `models.create`."""
    if checkpoint is not None:
        config = weights.agree(config, checkpoint)
    # Weights from elsewhere come first: what is wrong with them shows before a large model is initialised.
    found = pretrained.read(config) if checkpoint is None else None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build(config)
    if checkpoint is not None:
        weights.load(model, checkpoint)
    if found is not None:
        pretrained.fill(model, found)
    return model.eval()


def check(config: ModelConfig, *, checkpoint: str | Path | None) -> None:
    """See `models.check`."""
    if checkpoint is not None:
        config = weights.agree(config, checkpoint)
    with torch.device("meta"):
        model = build(config)
    if checkpoint is not None:
        weights.check(model, checkpoint)
    else:
        pretrained.check(model)


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
        tokens=model.tokens,
        tubes=tuple(tube.name for tube in model.plan.tubes),
        bytes_per_clip=model.plan.bytes_per_clip,
        dim=model.dim,
        parameters=_count(model, trainable=False),
        trainable=_count(model, trainable=True),
        gflops_per_view=counter.get_total_flops() / 1e9,
        images=model.image_plan is not None,
    )


def _count(model: nn.Module, *, trainable: bool) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def _trunk(config: ModelConfig, canvas: Canvas) -> TubeTrunk:
    kind = registry.preset(config.name)
    return TubeTrunk(
        plans.tubes(canvas, registry.tubes(config)),
        kind.dim,
        kind.layers,
        kind.heads,
        merges=_merges(config),
        interpolated=kind.interpolated,
        literal_positions=config.positions == "literal",
        norm_pre=_norm_pre(config),
        activation=registry.activation(config),
    )


def _clip(config: ModelConfig, canvas: Canvas) -> Clip:
    """The frozen tower of a model that has more than that."""
    image_tower = _tower(config)
    assert config.clip is not None
    assert config.clip.every is not None
    return Clip(plans.clip(canvas, image_tower.patch, config.clip.every), image_tower)


def _tower(config: ModelConfig) -> Tower:
    assert config.clip is not None
    return tower(config.clip.arch)


def _merges(config: ModelConfig) -> dict[str, Sizes]:
    wanted = registry.tubes(config)
    return {
        name: tube.space_to_depth
        for name, tube in zip(plans.tube_names(wanted), wanted, strict=True)
        if tube.space_to_depth != (1, 1, 1)
    }


def _norm_pre(config: ModelConfig) -> bool:
    """Whether the weights to start from need an LN before the first block."""
    return config.init is not None and config.init.arch is not None and tower(config.init.arch).norm_pre
