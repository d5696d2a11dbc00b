"""Tiny adapted towers, with random weights, for tests of what happens inside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import plans
from models.aim import AIM
from models.dualpath import DualPath
from models.model import Model
from models.st_adapter import STAdapter
from models.towers import Tower
from pipeline.plan import Plan

# The parts that towers differ in.
VARIANTS = {
    "plain": {},
    "scaled": {"layer_scale": 0.5, "activation": "quick_gelu"},
    "pooled": {"pool": "avg", "norm_pre": False, "pool_then_norm": True},
}


def tower(**variant) -> Tower:
    sizes = {"image_size": 64, "patch": 16, "width": 32, "layers": 3, "heads": 2, "mlp_dim": 64}
    parts = {"activation": "gelu", "layer_scale": None, "norm_pre": True, "pool": "tok"}
    return Tower(**({"arch": "tiny", "embed_dim": 24, "pool_then_norm": False} | sizes | parts | variant))


def aim(num_classes: int | None = None, **variant) -> AIM:
    torch.manual_seed(0)
    return AIM(_plan(), tower(**variant), num_classes=num_classes).eval()


def st_adapter(before_mlp: bool = False, num_classes: int | None = None, **variant) -> STAdapter:
    torch.manual_seed(0)
    return STAdapter(_plan(), tower(**variant), before_mlp=before_mlp, num_classes=num_classes).eval()


def dualpath(
    frames: int = 16, size: tuple[int, int] = (32, 96), num_classes: int | None = None, **variant
) -> DualPath:
    torch.manual_seed(0)
    plan = plans.dualpath(plans.canvas(frames, size, "area"), 16)
    return DualPath(plan, tower(**variant), bottleneck=8, num_classes=num_classes).eval()


def make(kind: str, num_classes: int | None = None, **variant) -> Model:
    """One of KINDS."""
    if kind == "dualpath":
        return dualpath(num_classes=num_classes, **variant)
    if kind == "aim":
        return aim(num_classes, **variant)
    return st_adapter(kind == "st twice", num_classes, **variant)


KINDS = ("aim", "st", "st twice", "dualpath")


def _plan() -> Plan:
    """Four key frames, wider than high."""
    return plans.clip(plans.canvas(8, (32, 48), "area"), 16, 2)


def random_tubes(plan: Plan, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        tube.name: torch.randint(0, 256, (batch, *tube.shape), dtype=torch.uint8, generator=generator)
        for tube in plan.tubes
    }


def wake(model: nn.Module) -> None:
    """As if it had been trained: what starts at 0 no longer is."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter.data, std=0.2, generator=generator)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
