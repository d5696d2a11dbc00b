"""Which weights learn how fast, which decay, and what their average is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import models
from jobs.optimizer import Average, depths, freeze, optimizer, set_rate
from jobs.recipe import Optimizer
from models.config import TubeConfig

TUBES = (TubeConfig(kernel=(2, 4, 4), stride=(2, 4, 4)),)


def small(name: str = "tubevit-nano") -> nn.Module:
    return models.create(name, frames=4, size=(8, 12), tubes=TUBES, num_classes=3)


def rates(model: nn.Module, wanted: Optimizer) -> dict[str, tuple[float, float]]:
    """(rate, weight decay) of each parameter."""
    groups = optimizer(model.named_parameters(), wanted).param_groups
    return {
        name: (group["lr"], group["weight_decay"])
        for name, x in model.named_parameters() for group in groups
        if any(x is other for other in group["params"])
    }  # fmt: skip


def test_the_rate_rises_and_falls() -> None:
    wanted = Optimizer(learning_rate=2.0, warm_up_steps=4)
    found = [wanted.rate(step, 12) for step in range(12)]
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    assert found[4:] == [1 + math.cos(math.pi * k / 8) for k in range(8)]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_only_matrices_decay(name: str) -> None:
    model = small("vivit-nano")
    found = rates(model, Optimizer.model_validate({"name": name, "learning_rate": 0.1, "weight_decay": 0.05}))
    assert found.keys() == {name for name, _ in model.named_parameters()}
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert all(decay == 0.05 for _, decay in found.values() if decay)
    assert decayed == {
        name for name, x in model.named_parameters() if x.ndim == 2 and "embedding" not in name
    }
    assert {rate for rate, _ in found.values()} == {0.1}


def test_lower_layers_learn_more_slowly() -> None:
    found = {
        name: rate for name, (rate, _) in rates(small(), Optimizer(learning_rate=1, layer_decay=0.5)).items()
    }
    assert found["head.weight"] == found["pool.score.weight"] == found["trunk.encoder.norm.bias"] == 1
    for k in range(4):
        assert found[f"trunk.encoder.blocks.{k}.mlp.up.weight"] == 0.5 ** (4 - k)
    assert found["trunk.tokenizer.weight.tube_2x4x4"] == 0.5**5


def test_a_second_stack_stands_on_the_first() -> None:
    names = ["encoder.blocks.11.mlp", "temporal_encoder.blocks.0.mlp", "head.weight", "positional_embedding"]
    names += ["temporal_positional_embedding", "encoder.norm.weight", "temporal_encoder.blocks.3.mlp"]
    assert list(depths(names).values())[:2] == [12, 13]
    assert depths(names) == {
        "encoder.blocks.11.mlp": 12, "temporal_encoder.blocks.0.mlp": 13, "temporal_encoder.blocks.3.mlp": 16,
        "head.weight": 17, "positional_embedding": 0, "temporal_positional_embedding": 12,
        "encoder.norm.weight": 12,
    }  # fmt: skip


def test_the_rate_of_a_step_keeps_what_layers_differ_in() -> None:
    model = small()
    made = optimizer(model.named_parameters(), Optimizer(learning_rate=1, layer_decay=0.5))
    set_rate(made, 0.1)
    assert {group["lr"] for group in made.param_groups} == {0.1 * 0.5**k for k in range(6)}


def test_what_the_spec_freezes() -> None:
    model = small()
    freeze(model, Optimizer(learning_rate=1, freeze=("trunk.tokenizer.*", "*.norm?.*")))
    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    assert trained
    assert not any("tokenizer" in name or "norm1" in name or "norm2" in name for name in trained)
    with pytest.raises(ValueError, match=r"'trunck.\*': fits no parameter that trains; there are "):
        freeze(small(), Optimizer(learning_rate=1, freeze=("trunck.*",)))
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze(small(), Optimizer(learning_rate=1, freeze=("*",)))


def test_the_average_follows_and_can_be_exchanged() -> None:
    model = nn.Linear(2, 1)
    average = Average(model.named_parameters(), 0.9)
    expected, steps = model.weight.detach().clone(), 100
    for step in range(steps):
        with torch.no_grad():
            model.weight += 1
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average.update(model, step)
    torch.testing.assert_close(average.values["weight"], expected)
    own = model.weight.detach().clone()
    average.exchange(model)
    assert torch.equal(average.values["weight"], own)
    torch.testing.assert_close(model.weight.detach(), expected)
    average.exchange(model)
    assert torch.equal(model.weight.detach(), own)
