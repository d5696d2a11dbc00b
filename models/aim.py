"""AIM: a frozen CLIP tower whose own attention also runs along time (Yang et al., arXiv:2302.03024).

The paper's classifier stands on the tower's last norm; here it stands on CLIP's embedding.

B clips, F key frames each (b = B*F), L tokens a frame (l = B*L), D channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.adapters import Bottleneck
from models.clip import Clip
from models.config import Classes
from models.model import Model
from models.towers import Tower
from models.transformer import Block, Layer
from pipeline.plan import Plan

SCALE = 0.5  # of the adapter beside the MLP


class Adapters(Layer):
    """A frozen block, adapted in time, in space and jointly (section 3.2-3.4). CLIP's block at first.

    x + T(MSA(LN x)) with attention among the tokens at one place in all frames; then x + S(MSA(LN x)) within
    each frame, S with a skip; then x + MLP(LN x) + A(LN x) / 2. Both attentions have the same frozen weights.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.time = Bottleneck(dim, dim // 4, dropout=0.0)
        self.space = Bottleneck(dim, dim // 4, dropout=0.0, skip=True)
        self.mlp = Bottleneck(dim, dim // 4, dropout=0.0)

    def run(self, x_bLD: Tensor, block: Block, batch: int) -> Tensor:
        tokens = x_bLD.shape[1]
        u_lFD = block.norm1(x_bLD).unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)
        change_lFD = self.time(block.scale1(block.attention(u_lFD)))
        x_bLD = x_bLD + change_lFD.unflatten(0, (batch, tokens)).transpose(1, 2).flatten(0, 1)
        x_bLD = x_bLD + self.space(block.scale1(block.attention(block.norm1(x_bLD))))
        u_bLD = block.norm2(x_bLD)
        return x_bLD + block.scale2(block.mlp(u_bLD)) + SCALE * self.mlp(u_bLD)


class AIM(Model):
    """A plan of `plans.clip`. What trains: `adapters`, `temporal_embedding` and `head`.

    The temporal embedding is a learned row a key frame, 0 at first, so that the model starts as CLIP. It is
    added after CLIP's first norm (before it in the paper's code). An image is the first key frame. As with
    CLIP, `mirrored` makes no difference.
    """

    def __init__(self, plan: Plan, tower: Tower, *, num_classes: Classes | None = None) -> None:
        super().__init__(plan, plan.image(), tower.embed_dim, num_classes)
        self.clip = Clip(plan, tower)
        self.temporal_embedding = nn.Parameter(torch.zeros(plan.tubes[0].grid[0], tower.width))
        self.adapters = nn.ModuleList(Adapters(tower.width) for _ in self.clip.blocks)

    def embed(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        x_bLD = self.clip.enter(tubes)
        batch, frames = next(iter(tubes.values())).shape[:2]
        x_bLD = x_bLD + self.temporal_embedding[:frames].repeat(batch, 1)[:, None]
        for block, adapters in zip(self.clip.blocks, self.adapters, strict=True):
            x_bLD = adapters(x_bLD, block, batch)
        return self.clip.leave(x_bLD, batch).mean(dim=1)
