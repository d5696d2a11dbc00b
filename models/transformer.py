"""The transformer of every model here: pre-LN blocks, and the cross-attention of the gated adapters.

B batch, L tokens, M tokens attended to, D channels, K heads, E channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """x + Attention(LN x), then x + Mlp(LN x) (ViT, arXiv:2010.11929, section 3.1).

    `quick_gelu` and `layer_scale` (the initial gain of each branch) are variants of CLIP towers.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int,
        *,
        eps: float = 1e-6,
        quick_gelu: bool = False,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, mlp_dim, quick_gelu=quick_gelu)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.scale1(self.attention(self.norm1(x_BLD)))
        return x_BLD + self.scale2(self.mlp(self.norm2(x_BLD)))


class Encoder(nn.Module):
    """A stack of blocks and a final LN: (B, L, D) -> (B, L, D)."""

    def __init__(self, dim: int, layers: int, heads: int, mlp_dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_dim, eps=eps) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x_BLD: Tensor) -> Tensor:
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)


class SelfAttention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one projection, in this order."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _linear(dim, 3 * dim)
        self.out = _linear(dim, dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        q, k, v = (_split(part, self.heads) for part in self.qkv(x_BLD).chunk(3, dim=-1))
        return self.out(_merge(functional.scaled_dot_product_attention(q, k, v)))


class CrossAttention(nn.Module):
    """Multi-head attention of `dim`-wide queries over tokens of another width."""

    def __init__(self, dim: int, source_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = _linear(dim, dim)
        self.kv = _linear(source_dim, 2 * dim)
        self.out = _linear(dim, dim)

    def forward(self, x_BLD: Tensor, source_BMS: Tensor) -> Tensor:
        q = _split(self.q(x_BLD), self.heads)
        k, v = (_split(part, self.heads) for part in self.kv(source_BMS).chunk(2, dim=-1))
        return self.out(_merge(functional.scaled_dot_product_attention(q, k, v)))


class Mlp(nn.Module):
    """Two layers with a GELU between: exact, or CLIP's x * sigmoid(1.702 x)."""

    def __init__(self, dim: int, hidden: int, *, quick_gelu: bool = False) -> None:
        super().__init__()
        self.quick_gelu = quick_gelu
        self.up = _linear(dim, hidden)
        self.down = _linear(hidden, dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x = self.up(x_BLD)
        return self.down(x * (1.702 * x).sigmoid() if self.quick_gelu else functional.gelu(x))


class LayerScale(nn.Module):
    """A learned gain for each channel."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD * self.gain


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with ViT's initialisation: Xavier weights, zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _split(x_BLD: Tensor, heads: int) -> Tensor:
    return x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, K, L, E)


def _merge(x_BKLE: Tensor) -> Tensor:
    return x_BKLE.transpose(1, 2).flatten(2)
