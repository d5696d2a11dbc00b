"""A linear probe: logistic regression on embeddings that stay as they are, by L-BFGS.

N videos, D channels, C classes. Embeddings are standardised channel by channel, a part of them at a time, so
that no second copy of them is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PART = 1 << 14  # videos at a time
STEPS = 300  # of L-BFGS, at most; some tens are usual
# What the squared weights are multiplied by, beside half the mean loss; from the strongest on.
DECAYS = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
LEAST_DEVIATION = 1e-6  # a channel that varies less, in embeddings of unit length, tells nothing


@dataclass(frozen=True)
class Linear:
    """Logits of standardised embeddings: (x - mean) * scale @ weight + bias.

    mean, scale: float32 (D,). weight: float64 (D, C). bias: float64 (C,). decay: of the weights.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    decay: float

    def logits(self, x_BD: Tensor) -> Tensor:
        """float32 (B, C)."""
        z_BD = (x_BD - self.mean) * self.scale
        return z_BD @ self.weight.float() + self.bias.float()


class Regression:
    """Fits probes to embeddings.

    Args:
        x_ND: float32, on the CPU. targets: int64 (N,), or zeros and ones (N, C) of any number of labels each.
        device: where it is worked out.
    """

    def __init__(self, x_ND: Tensor, targets: Tensor, classes: int, device: torch.device) -> None:
        self._x_ND, self._targets, self._classes, self._device = x_ND, targets, classes, device

    def chosen(self, train: np.ndarray, held_out: np.ndarray) -> Linear:
        """A probe of the videos `train`, by the decay that is best for those that are held out.

        Decays are tried from the strongest on until the loss rises, each from the weights of the one before;
        with nothing held out it is the middle one.

        Args:
            train: int64 rows. held_out: bool, of each of them.
        """
        probe = self.standard(train)
        if not held_out.any():
            return self.fitted(probe, train, DECAYS[len(DECAYS) // 2])
        part = best = self.standard(train[~held_out])
        least = float("inf")
        for decay in DECAYS:
            part = self.fitted(part, train[~held_out], decay)
            loss = self.loss(part, train[held_out])
            if loss >= least:
                break
            best, least = part, loss
        begun = Linear(probe.mean, probe.scale, best.weight, best.bias, best.decay)
        return self.fitted(begun, train, best.decay)

    def standard(self, rows: np.ndarray) -> Linear:
        """Knows how to standardise some videos, and no more yet."""
        sums_D = squares_D = torch.zeros(self._x_ND.shape[1], dtype=torch.float64, device=self._device)
        for x_BD, _ in self._parts(rows):
            sums_D = sums_D + x_BD.double().sum(0)
            squares_D = squares_D + x_BD.double().square().sum(0)
        mean_D = sums_D / len(rows)
        deviation_D = (squares_D / len(rows) - mean_D.square()).clamp(min=0).sqrt()
        scale_D = torch.where(deviation_D > LEAST_DEVIATION, 1 / deviation_D, 0.0)
        weight_DC = torch.zeros(len(mean_D), self._classes, dtype=torch.float64, device=self._device)
        return Linear(mean_D.float(), scale_D.float(), weight_DC, torch.zeros_like(weight_DC[0]), 0.0)

    def fitted(self, begun: Linear, rows: np.ndarray, decay: float) -> Linear:
        """The minimum of the mean loss + decay / 2 * |weights|^2, from given weights on."""
        weight_DC = begun.weight.clone().requires_grad_()
        bias_C = begun.bias.clone().requires_grad_()
        probe = Linear(begun.mean, begun.scale, weight_DC, bias_C, decay)
        lbfgs = torch.optim.LBFGS(
            [weight_DC, bias_C],
            max_iter=STEPS,
            max_eval=2 * STEPS,
            tolerance_grad=1e-6,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def objective() -> float:
            lbfgs.zero_grad()
            penalty = decay / 2 * weight_DC.square().sum()
            penalty.backward()
            return penalty.item() + self._mean_loss(probe, rows, backward=True)

        lbfgs.step(objective)
        return Linear(begun.mean, begun.scale, weight_DC.detach(), bias_C.detach(), decay)

    def loss(self, probe: Linear, rows: np.ndarray) -> float:
        """The mean cross-entropy of a probe, over some videos."""
        with torch.no_grad():
            return self._mean_loss(probe, rows, backward=False)

    def _mean_loss(self, probe: Linear, rows: np.ndarray, *, backward: bool) -> float:
        total = 0.0
        for x_BD, targets in self._parts(rows):
            logits_BC = probe.logits(x_BD).double()  # what is summed over many must not be rounded away
            if targets.ndim == 1:
                loss = functional.cross_entropy(logits_BC, targets, reduction="sum") / len(rows)
            else:
                loss = functional.binary_cross_entropy_with_logits(
                    logits_BC, targets.double(), reduction="sum"
                )
                loss = loss / len(rows)
            if backward:
                loss.backward()
            total += loss.item()
        return total

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(rows), PART):
            some = torch.from_numpy(rows[start : start + PART])
            yield self._x_ND[some].to(self._device), self._targets[some].to(self._device)
