"""Who lies near: votes of nearest neighbours, and how soon one that is right is found.

Q queries, N embeddings that are searched, K of them found, D channels, C classes; all of unit length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TEMPERATURE = 0.07  # arXiv:1805.01978, section 3.4; DINO (arXiv:2104.14294) votes with the same
SEARCHED = 1 << 14  # embeddings at a time
LEAST_SHARE = 1e-9  # of the votes, for a class that has none: its logarithm must be finite


def nearest(x_QD: Tensor, x_ND: Tensor, rows: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
    """Cosines (Q, K) and int64 rows (Q, K), the nearest first, of those `rows` of `x_ND`; exact.

    K is `count`, or how many there are. Works where `x_QD` is; SEARCHED of the others go there at a time.
    """
    best_QK = x_QD.new_empty(len(x_QD), 0)
    which_QK = torch.empty(len(x_QD), 0, dtype=torch.int64, device=x_QD.device)
    for start in range(0, len(rows), SEARCHED):
        some = torch.from_numpy(rows[start : start + SEARCHED])
        cosines_QB = x_QD @ x_ND[some].to(x_QD.device).T
        found_QK, at_QK = cosines_QB.topk(min(count, len(some)), dim=1)
        both_QK = torch.cat([best_QK, found_QK], dim=1)
        named_QK = torch.cat([which_QK, some.to(x_QD.device)[at_QK]], dim=1)
        best_QK, at_QK = both_QK.topk(min(count, both_QK.shape[1]), dim=1)
        which_QK = named_QK.gather(1, at_QK)
    return best_QK, which_QK


def votes(cosines_QK: Tensor, labels_QK: Tensor, classes: int) -> Tensor:
    """Logits (Q, C): the logarithm of each class' share of the votes.

    A neighbour votes for its class with weight exp(cosine / TEMPERATURE) (arXiv:1805.01978, section 3.4).
    """
    weights_QK = (cosines_QK / TEMPERATURE).softmax(dim=1)
    shares_QC = cosines_QK.new_zeros(len(cosines_QK), classes).scatter_add_(1, labels_QK, weights_QK)
    return shares_QC.clamp(min=LEAST_SHARE).log()


def hits(right_QK: Tensor, counts: Sequence[int]) -> Tensor:
    """int64 (len(counts),): of how many queries one of the first so many is right."""
    ever_QK = right_QK.cummax(dim=1).values if right_QK.numel() else right_QK
    last = right_QK.shape[1] - 1
    return torch.stack([ever_QK[:, min(k - 1, last)].sum() for k in counts])


def ranks(x_QD: Tensor, x_ND: Tensor, keys_Q: Tensor, keys_N: Tensor, part: int = 1 << 10) -> Tensor:
    """int64 (Q,): how many that are wrong lie as near as the nearest that is right, or nearer.

    A query is at home with all that have its key, of which there is at least one. So with a rank below k one
    of them is among the first k, and no luck with ties helps.
    """
    found = []
    for start in range(0, len(x_QD), part):
        cosines_BN = x_QD[start : start + part] @ x_ND.T
        right_BN = keys_Q[start : start + part, None] == keys_N
        nearest_B1 = cosines_BN.masked_fill(~right_BN, -torch.inf).amax(dim=1, keepdim=True)
        found.append(((cosines_BN >= nearest_B1) & ~right_BN).sum(dim=1))
    return torch.cat(found)
