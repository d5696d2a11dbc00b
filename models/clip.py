"""CLIP's image tower, frozen, on key frames (Radford et al., arXiv:2103.00020; open_clip's ViT).

And SigLIP's (arXiv:2303.15343; timm's ViT), which differs at both ends.
B clips, F key frames each, b = B*F, L = class token + patches, D channels, E embedding channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import Classes
from models.model import Model
from models.tokenizer import TubeTokenizer, matching
from models.towers import Tower
from models.transformer import Block, CrossAttention, Mlp
from pipeline.plan import Plan


class Clip(Model):
    """A ViT of open_clip on a plan of one (1, p, p) tube. Its weights never train, nor does it leave eval().

    The clip's embedding is the mean of its frames' embeddings, none of them normalised. `mirrored` makes no
    difference: positions here are learned per cell of the patch grid, and flipping the tubes flips that
    grid onto itself. (Where patches do not divide the width, the strip that no patch covers stays at the
    right: what is mirrored is the covered part, a crop of the frame.)
    """

    def __init__(self, plan: Plan, tower: Tower, *, num_classes: Classes | None = None) -> None:
        super().__init__(plan, plan.image(), tower.embed_dim, num_classes)
        self.tower = tower
        width, gain = tower.width, tower.width**-0.5
        siglip = tower.pool == "map"
        self.patch = TubeTokenizer(plan, width, bias=siglip)
        self.class_embedding = None if siglip else nn.Parameter(gain * torch.randn(width))
        cells = tower.class_tokens + tower.grid**2
        self.positional_embedding = nn.Parameter(gain * torch.randn(cells, width))
        self.norm_pre = nn.LayerNorm(width, eps=tower.eps) if tower.norm_pre else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                width,
                tower.heads,
                tower.mlp_dim,
                eps=tower.eps,
                activation=tower.activation,
                layer_scale=tower.layer_scale,
            )
            for _ in range(tower.layers)
        )
        self.norm_post = nn.LayerNorm(width, eps=tower.eps)
        self.pool = AttentionPool(tower) if siglip else None
        self.proj = None if siglip else nn.Parameter(gain * torch.randn(width, tower.embed_dim))
        self.requires_grad_(False)
        if self.head is not None:
            self.head.requires_grad_(True)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def embed(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        return self.frames(tubes).mean(dim=1)

    def frames(self, tubes: Mapping[str, Tensor]) -> Tensor:
        """Tubes of `plan` or `image_plan` -> float32 (B, F, E): each key frame's embedding, unnormalised."""
        x = self.enter(tubes)
        for block in self.blocks:
            x = block(x)
        return self.leave(x, len(next(iter(tubes.values()))))

    def enter(self, tubes: Mapping[str, Tensor]) -> Tensor:
        """Tubes -> (B*F, L, D), what the first block takes: all frames of all clips are one batch."""
        matching(tubes, self.plans)
        (patches,) = tubes.values()
        frames, rows, columns = patches.shape[1:4]
        x_BND = self.patch(tubes)
        x_bLD = x_BND.unflatten(1, (frames, rows * columns)).flatten(0, 1)
        table_LD = positions(self.positional_embedding, self.tower.grid, (rows, columns))
        return self.norm_pre(self.begin(x_bLD) + table_LD)

    def begin(self, x_bND: Tensor) -> Tensor:
        """The class token before an image's patches, if the tower has one."""
        if self.class_embedding is None:
            return x_bND
        first_b1D = self.class_embedding.expand(len(x_bND), 1, -1).to(x_bND.dtype)
        return torch.cat([first_b1D, x_bND], dim=1)

    def leave(self, x_bLD: Tensor, batch: int) -> Tensor:
        """What the last block gives, (B*F, L, D) -> float32 (B, F, E)."""
        if not self.tower.pool_then_norm:
            x_bLD = self.norm_post(x_bLD)
        if self.pool is not None:
            pooled_bD = self.pool(x_bLD)
        else:
            pooled_bD = x_bLD[:, 0] if self.tower.pool == "tok" else x_bLD[:, 1:].mean(dim=1)
        if self.tower.pool_then_norm:
            pooled_bD = self.norm_post(pooled_bD)
        z_bE = pooled_bD if self.proj is None else pooled_bD @ self.proj
        return z_bE.float().unflatten(0, (batch, -1))


class AttentionPool(nn.Module):
    """One learned query over all tokens, then y + Mlp(LN y) (MAP: arXiv:2106.04560, section 2)."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        width = tower.width
        self.query = nn.Parameter(width**-0.5 * torch.randn(1, 1, width))
        self.attention = CrossAttention(width, width, tower.heads)
        self.norm = nn.LayerNorm(width, eps=tower.eps)
        self.mlp = Mlp(width, tower.mlp_dim, tower.activation)

    def forward(self, x_bLD: Tensor) -> Tensor:
        """(b, L, D) -> (b, D)."""
        y_b1D = self.attention(self.query.expand(len(x_bLD), -1, -1), x_bLD)
        return (y_b1D + self.mlp(self.norm(y_b1D)))[:, 0]


def positions(table_LD: Tensor, native: int, grid: tuple[int, int]) -> Tensor:
    """A learned table for another grid (rows, columns), bicubic as in open_clip: (L, D).

    Its last native**2 rows are the grid's; a class token's before them stays as it is.
    """
    if grid == (native, native):
        return table_LD
    first_1D, rest_ND = table_LD.float().tensor_split([len(table_LD) - native * native])
    square_1DHW = rest_ND.T.unflatten(1, (native, native))[None]
    resized_1DHW = functional.interpolate(
        square_1DHW, size=grid, mode="bicubic", antialias=True, align_corners=False
    )
    return torch.cat([first_1D, resized_1DHW[0].flatten(1).T]).to(table_LD.dtype)
