"""A model together with what it is trained for, as one module: one forward pass, however many datasets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.feed import Part
from models.model import Model


class Objective(nn.Module):
    """The mean loss of all clips of a batch, each by the head of its dataset.

    DDP and FSDP see one forward pass a batch, so that weights which only some of the datasets use are theirs
    to handle like any other.
    """

    def __init__(self, model: Model, *, label_smoothing: float, multi_label: bool) -> None:
        super().__init__()
        self.model = model
        self._several = isinstance(model.head, nn.ModuleDict)
        self._smoothing, self._multi_label = label_smoothing, multi_label

    def forward(self, parts: Sequence[Part]) -> tuple[Tensor, list[Tensor]]:
        """The loss, a number, and float32 logits (B, classes) of each part."""
        logits = [
            self.model(part.tubes, part.mirrored, part.head if self._several else None) for part in parts
        ]
        losses = [self._losses(x, part) for x, part in zip(logits, parts, strict=True)]
        return torch.cat(losses).mean(), logits

    def _losses(self, logits: Tensor, part: Part) -> Tensor:
        """float32 (B,): between a clip's own labels and those of the partner it is mixed with."""
        own = self._loss(logits, part.targets)
        if (part.shares == 1).all():
            return own
        return part.shares * own + (1 - part.shares) * self._loss(logits, part.others)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not self._multi_label:
            return functional.cross_entropy(
                logits, targets, reduction="none", label_smoothing=self._smoothing
            )
        smooth = targets * (1 - self._smoothing) + self._smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)
