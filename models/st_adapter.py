"""ST-Adapter: a frozen CLIP tower with small convolutions along time (Pan et al., arXiv:2206.13559).

The paper's classifier stands on the tower's last norm; here it stands on CLIP's embedding.

B clips, F key frames each (b = B*F), L tokens a frame, N of them patches, D channels, H hidden channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.clip import Clip
from models.config import Classes
from models.model import Model
from models.towers import Tower
from models.transformer import Block, Layer
from pipeline.plan import Plan

HIDDEN = 384
KERNEL = 3  # frames; 1x1 in space


class Convolution(nn.Module):
    """x + W_up Conv(W_down x) on the patch tokens: (B*F, L, D) -> (B*F, L, D), at first unchanged.

    The convolution runs along time, each hidden channel by itself (section 3.2). As in the paper's code
    there is no activation, and it is the convolution that is 0 at first.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, HIDDEN)
        self.time = nn.Conv2d(HIDDEN, HIDDEN, (KERNEL, 1), padding=(KERNEL // 2, 0), groups=HIDDEN)
        self.up = nn.Linear(HIDDEN, dim)
        for zero in (self.down.bias, self.time.weight, self.time.bias, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, x_bLD: Tensor, batch: int, patches: int) -> Tensor:
        other_bLD, x_bND = x_bLD.split([x_bLD.shape[1] - patches, patches], dim=1)
        hidden_BHFN = self.down(x_bND).unflatten(0, (batch, -1)).permute(0, 3, 1, 2)
        change_bND = self.up(self.time(hidden_BHFN).permute(0, 2, 3, 1).flatten(0, 1))
        return torch.cat([other_bLD, x_bND + change_bND], dim=1)


class Adapters(Layer):
    """A frozen block with a convolution before its attention, and maybe one before its MLP."""

    def __init__(self, dim: int, before_mlp: bool) -> None:
        super().__init__()
        self.attention = Convolution(dim)
        self.mlp = Convolution(dim) if before_mlp else None

    def run(self, x_bLD: Tensor, block: Block, batch: int, patches: int) -> Tensor:
        x_bLD = self.attention(x_bLD, batch, patches)
        x_bLD = x_bLD + block.scale1(block.attention(block.norm1(x_bLD)))
        if self.mlp is not None:
            x_bLD = self.mlp(x_bLD, batch, patches)
        return x_bLD + block.scale2(block.mlp(block.norm2(x_bLD)))


class STAdapter(Model):
    """A plan of `plans.clip`. What trains: `adapters` and `head`.

    The model starts as CLIP. An image is a clip of one frame. As with CLIP, `mirrored` makes no difference.

    before_mlp: a second convolution in each block, as the paper's code has it for Something-Something v2.
        The very last one changes patches alone, so a tower that is read at its class token does not see it.
    """

    def __init__(
        self, plan: Plan, tower: Tower, *, before_mlp: bool = False, num_classes: Classes | None = None
    ) -> None:
        super().__init__(plan, plan.image(), tower.embed_dim, num_classes)
        self.clip = Clip(plan, tower)
        self.adapters = nn.ModuleList(Adapters(tower.width, before_mlp) for _ in self.clip.blocks)

    def embed(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        x_bLD = self.clip.enter(tubes)
        batch, _, rows, columns = next(iter(tubes.values())).shape[:4]
        for block, adapters in zip(self.clip.blocks, self.adapters, strict=True):
            x_bLD = adapters(x_bLD, block, batch, rows * columns)
        return self.clip.leave(x_bLD, batch).mean(dim=1)
