"""What stands on an embedding: a linear classifier, one for each dataset, or nothing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from models.transformer import linear


def classifier(
    dim: int, num_classes: int | Mapping[str, int] | None, *, hidden: int | None = None
) -> nn.Module | None:
    """A linear head with small weights, so that the first cross-entropy is about ln(num_classes).

    {dataset: classes} gives each dataset its own (joint training; TubeViT, arXiv:2212.03229, section 3.3).
    hidden: that many channels and a GELU in between.
    """
    if num_classes is None:
        return None
    if isinstance(num_classes, Mapping):
        return nn.ModuleDict({name: _head(dim, count, hidden) for name, count in num_classes.items()})
    return _head(dim, num_classes, hidden)


def classify(head: nn.Module | None, z_BD: Tensor, dataset: str | None) -> Tensor:
    """float32 logits (B, num_classes); ValueError if there is no such head."""
    if head is None:
        raise ValueError("model.num_classes = None: a model without a head gives no logits; set num_classes")
    if isinstance(head, nn.ModuleDict):
        if dataset is None or dataset not in head:
            raise ValueError(f"dataset = {dataset!r}: the model has heads for {', '.join(head)}; name one")
        return head[dataset](z_BD).float()
    if dataset is not None:
        raise ValueError(f"dataset = {dataset!r}: the model has one head, for all; leave dataset out")
    return head(z_BD).float()


def _head(dim: int, num_classes: int, hidden: int | None) -> nn.Module:
    if hidden is None:
        return _linear(dim, num_classes)
    return nn.Sequential(linear(dim, hidden), nn.GELU(), _linear(hidden, num_classes))


def _linear(dim: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head
