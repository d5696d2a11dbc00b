"""What stands on an embedding: a linear classifier, or nothing."""

from __future__ import annotations

from torch import Tensor, nn


def classifier(dim: int, num_classes: int | None) -> nn.Linear | None:
    """A linear head with small weights, so that the first cross-entropy is about ln(num_classes)."""
    if num_classes is None:
        return None
    head = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def classify(head: nn.Module | None, z_BD: Tensor) -> Tensor:
    """float32 logits (B, num_classes); ValueError if the model was made without a head."""
    if head is None:
        raise ValueError("model.num_classes = None: a model without a head gives no logits; set num_classes")
    return head(z_BD).float()
