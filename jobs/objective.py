"""A model together with what it is trained for, as one module: one forward pass, however many datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.contrast import contrast
from jobs.distill import distillation
from jobs.feed import Part
from jobs.materials import Materials
from jobs.recipe import Learning
from models.heads import classify
from models.model import Model


class Term(Protocol):
    """A loss beside the cross-entropy."""

    def __call__(self, embeddings: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
        """The mean over all clips of `parts`, a number; `embeddings` are theirs, float32 (B, E) each."""


class Objective(nn.Module):
    """The mean loss of all clips of a batch, each by the head of its dataset.

    DDP and FSDP see one forward pass a batch, so that weights which only some of the datasets use are theirs
    to handle like any other.

    terms: {name: (weight, loss)} of what is added to the cross-entropy in training.
    """

    def __init__(
        self,
        model: Model,
        *,
        label_smoothing: float = 0.0,
        multi_label: bool = False,
        terms: Mapping[str, tuple[float, Term]] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._several = isinstance(model.head, nn.ModuleDict)
        self._smoothing, self._multi_label = label_smoothing, multi_label
        self._terms = dict(terms or {})

    def forward(self, parts: Sequence[Part]) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """The loss, a number; float32 logits (B, classes) of each part; the terms of the loss, by name."""
        embeddings = [self.model.embed(part.tubes, part.mirrored) for part in parts]
        logits = [
            classify(self.model.head, z, part.head if self._several else None)
            for z, part in zip(embeddings, parts, strict=True)
        ]
        losses = [self._losses(x, part) for x, part in zip(logits, parts, strict=True)]
        loss, found = torch.cat(losses).mean(), {}
        for name, (weight, term) in self._terms.items() if self.training else ():
            value = term(embeddings, parts)
            loss, found[name] = loss + weight * value, value.detach()
        return loss, logits, found

    def _losses(self, logits: Tensor, part: Part) -> Tensor:
        """float32 (B,): between a clip's own labels and those of the partner it is mixed with."""
        own = self._loss(logits, part.targets)
        if (part.shares == 1).all():
            return own
        return part.shares * own + (1 - part.shares) * self._loss(logits, part.targets[part.partners])

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not self._multi_label:
            return functional.cross_entropy(
                logits, targets, reduction="none", label_smoothing=self._smoothing
            )
        smooth = targets * (1 - self._smoothing) + self._smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)


def objective(spec: Learning, data: Materials, model: Model, device: torch.device) -> Objective:
    """What a spec trains a model for; the model is on its device, and has not been trained yet."""
    recipe = spec.recipe
    terms: dict[str, tuple[float, Term]] = {}
    if recipe.contrast is not None:
        found = contrast(recipe.contrast, model, data.classes, data.captions, device)
        terms["loss/contrast"] = recipe.contrast.weight, found
    if recipe.distill is not None:
        stays = distillation(model, started_from_checkpoint=spec.model.checkpoint is not None)
        terms["loss/distill"] = recipe.distill.weight, stays
    return Objective(
        model, label_smoothing=recipe.label_smoothing, multi_label=recipe.multi_label, terms=terms
    )
