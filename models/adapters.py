"""The bottleneck trained inside a frozen transformer (Houlsby et al., arXiv:1902.00751, section 2.1)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """A(u) = W_up GELU(W_down u), which is 0 until W_up has learned: (..., D) -> (..., D).

    dropout: of the hidden channels, in training alone. It is drawn for all clips of a forward pass at once:
        a batch that goes through in other parts (by more workers, say) has another.
    skip: u + A(u), for an adapter that a branch passes through.
    """

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.1, skip: bool = False) -> None:
        super().__init__()
        self.skip = skip
        self.down = nn.Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(hidden, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, u: Tensor) -> Tensor:
        change = self.up(self.dropout(functional.gelu(self.down(u))))
        return u + change if self.skip else change
