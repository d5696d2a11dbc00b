"""TubeViT: a plain ViT over sparse video tubes (Piergiovanni et al., arXiv:2212.03229).

Left out: space-to-depth, and kernels interpolated from one (an ablation of the paper).
B clips, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.model import Model
from models.positions import table
from models.tokenizer import TubeTokenizer, matching
from models.transformer import Encoder
from pipeline.plan import Plan


class TubeTrunk(nn.Module):
    """Tokens, their fixed positions, and a pre-LN encoder with a final LN; no class token (section 3)."""

    positions: Tensor  # (2, N, D)
    image_positions: Tensor | None

    def __init__(self, plan: Plan, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.plan = plan
        self.image_plan = plan.image()
        self.dim = dim
        self.tokenizer = TubeTokenizer(plan, dim)
        self.encoder = Encoder(dim, layers, heads, 4 * dim)
        images = None if self.image_plan is None else table(self.image_plan, dim)
        # They follow from the plan, so a checkpoint serves clips of another length or size.
        self.register_buffer("positions", table(plan, dim), persistent=False)
        self.register_buffer("image_positions", images, persistent=False)

    def forward(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        """Tubes of `plan` or of `image_plan` -> (B, N, D)."""
        plans = [plan for plan in (self.plan, self.image_plan) if plan is not None]
        positions_2ND = self.positions
        if matching(tubes, plans) != self.plan and self.image_positions is not None:
            positions_2ND = self.image_positions
        positions = positions_2ND[0] if mirrored is None else positions_2ND[mirrored.long()]
        return self.encoder(self.tokenizer(tubes) + positions)


class AttentionPool(nn.Module):
    """(B, N, D) -> (B, D): the mean of the tokens, weighted by a softmax over them of one linear score.

    The paper has "attention pooling" without an equation; this is the simplest one.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, z_BND: Tensor) -> Tensor:
        weight_B1N = self.score(z_BND).float().softmax(dim=1).transpose(1, 2)
        return torch.bmm(weight_B1N, z_BND.float()).squeeze(1)


class TubeViT(Model):
    """Trunk and pool. An image goes through the 2-D tube alone (section 3.3)."""

    def __init__(
        self, plan: Plan, dim: int, layers: int, heads: int, *, num_classes: int | None = None
    ) -> None:
        super().__init__(plan, plan.image(), dim, num_classes)
        self.trunk = TubeTrunk(plan, dim, layers, heads)
        self.pool = AttentionPool(dim)

    def embed(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        return self.pool(self.trunk(tubes, mirrored)).float()
