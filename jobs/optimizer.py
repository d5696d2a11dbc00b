"""Which weights learn, how fast, and their moving average."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from jobs.recipe import Optimizer
from models.weights import HEAD

# Blocks of a stack: what stands before them is nearer to the pixels, what stands after them to the head.
BLOCK = re.compile(r"(?:^|\.)(?:blocks|adapters|spatial|temporal)\.(\d+)\.")
SECOND = "temporal_encoder."  # stands on another stack (ViViT's model 2)
# Neither a matrix that could be smaller: what is one row or one number, and tables of positions.
UNDECAYED = ("embedding", "gate")


def freeze(model: nn.Module, wanted: Optimizer) -> None:
    """Take what the spec freezes out of training. ValueError if a pattern fits none, or nothing is left."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for pattern in wanted.freeze:
        if not any(wanted.model_copy(update={"freeze": (pattern,)}).freezes(name) for name in names):
            raise ValueError(
                f"recipe.optimizer.freeze = {pattern!r}: fits no parameter that trains; there are "
                f"{', '.join(dict.fromkeys(re.sub(r'[.][0-9]+[.]', '.*.', name) for name in names))}"
            )
    for name, parameter in model.named_parameters():
        if wanted.freezes(name):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"recipe.optimizer.freeze = {list(wanted.freeze)!r}: leaves nothing to train")


def optimizer(named: Iterable[tuple[str, Tensor]], wanted: Optimizer) -> torch.optim.Optimizer:
    """Of the parameters that train, in groups by `weight_decay` and `scale`, a factor of their rate."""
    trained = [(name, x) for name, x in named if x.requires_grad]
    depth = depths(name for name, _ in trained)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, x in trained:
        scale = wanted.layer_decay ** (max(depth.values()) - depth[name])
        groups.setdefault((wanted.weight_decay if decays(name, x) else 0.0, scale), []).append(x)
    options = [
        {"params": some, "weight_decay": decay, "scale": scale, "lr": wanted.learning_rate * scale}
        for (decay, scale), some in groups.items()
    ]
    if wanted.name == "sgd":
        return torch.optim.SGD(options, lr=wanted.learning_rate, momentum=wanted.momentum)
    kind = torch.optim.AdamW if wanted.name == "adamw" else torch.optim.Adam
    return kind(options, lr=wanted.learning_rate, betas=wanted.betas)


def set_rate(made: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the coming step."""
    for group in made.param_groups:
        group["lr"] = rate * group["scale"]


def depths(names: Iterable[str]) -> dict[str, int]:
    """How many layers lie between the pixels and each parameter; what follows the last block is above all."""
    names = list(names)
    found = {name: int(block.group(1)) + 1 for name in names if (block := BLOCK.search(name)) is not None}
    first = max((depth for name, depth in found.items() if not name.startswith(SECOND)), default=0)
    found |= {name: first + depth for name, depth in found.items() if name.startswith(SECOND)}
    top = max(found.values(), default=0)
    for name in names:
        if name.startswith((HEAD, "pool.")):
            found[name] = top + 1
        elif ".norm." in f".{name}" and name not in found:  # the one after a stack
            found[name] = first if top > first and not name.startswith(SECOND) else top + 1
        elif name not in found:
            found[name] = first if name.startswith("temporal_") else 0
    return found


def decays(name: str, x: Tensor) -> bool:
    """Whether weight decay means anything to a parameter: not to biases, norms, gates and positions."""
    return x.ndim >= 2 and not any(part in name for part in UNDECAYED)


class Average:
    """An exponential moving average of the weights that train (Polyak and Juditsky, 1992).

    values: by name, in the order of the parameters.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]], decay: float) -> None:
        self.decay = decay
        self.values = {name: x.detach().clone() for name, x in named if x.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After an optimizer step, counted from 0; the first ones count more, as the start means nothing."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.values.values()), [own[name] for name in self.values], 1 - decay)

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Put the average into the model and the model's weights here; the same again puts them back."""
        own: Mapping[str, Tensor] = dict(model.named_parameters())
        for name, value in self.values.items():
            kept = own[name].clone()
            own[name].copy_(value)
            value.copy_(kept)
