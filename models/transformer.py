"""The transformer of every model here: pre-LN blocks, and the cross-attention of the gated adapters.

B batch, L tokens, M tokens attended to, D channels, K heads, E channels a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.config import Activation


class Layer(nn.Module):
    """What a deep stack is made of: `run` does the work.

    recompute: keep no activations inside for the backward pass, but compute them again (activation
        checkpointing, arXiv:1604.06174): about a third more work for a fraction of the memory.
    """

    recompute = False
    run: Callable[..., Tensor]

    def forward(self, *inputs: Any) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.run, *inputs, use_reentrant=False)
        return self.run(*inputs)


class Block(Layer):
    """x + Attention(LN x), then x + Mlp(LN x) (ViT, arXiv:2010.11929, section 3.1).

    `activation` and `layer_scale` (the initial gain of each branch) are variants of CLIP towers.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int,
        *,
        eps: float = 1e-6,
        activation: Activation = "gelu",
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, mlp_dim, activation)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def run(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.scale1(self.attention(self.norm1(x_BLD)))
        return x_BLD + self.scale2(self.mlp(self.norm2(x_BLD)))


class Encoder(nn.Module):
    """A stack of blocks and a final LN: (B, L, D) -> (B, L, D), or what shape the blocks take."""

    def __init__(
        self,
        dim: int,
        layers: int,
        heads: int,
        mlp_dim: int,
        *,
        eps: float = 1e-6,
        activation: Activation = "gelu",
        block: type[Block] = Block,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            block(dim, heads, mlp_dim, eps=eps, activation=activation) for _ in range(layers)
        )
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
        self.qkv = linear(dim, 3 * dim)
        self.out = linear(dim, dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.out(attend(self.qkv(x_BLD), self.heads))


class CrossAttention(nn.Module):
    """Multi-head attention of `dim`-wide queries over tokens of another width."""

    def __init__(self, dim: int, source_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = linear(dim, dim)
        self.kv = linear(source_dim, 2 * dim)
        self.out = linear(dim, dim)

    def forward(self, x_BLD: Tensor, source_BMS: Tensor) -> Tensor:
        q = split(self.q(x_BLD), self.heads)
        k, v = (split(part, self.heads) for part in self.kv(source_BMS).chunk(2, dim=-1))
        return self.out(merge(functional.scaled_dot_product_attention(q, k, v)))


class Mlp(nn.Module):
    """Two layers with a GELU between: exact, its tanh approximation, or CLIP's x * sigmoid(1.702 x)."""

    def __init__(self, dim: int, hidden: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation = activation
        self.up = linear(dim, hidden)
        self.down = linear(hidden, dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x = self.up(x_BLD)
        if self.activation == "quick_gelu":
            return self.down(x * (1.702 * x).sigmoid())
        return self.down(functional.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none"))


class LayerScale(nn.Module):
    """A learned gain for each channel."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD * self.gain


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with ViT's initialisation: Xavier weights, zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def attend(qkv_BLD: Tensor, heads: int) -> Tensor:
    """softmax(q k / sqrt(E)) v of joined queries, keys and values: (B, L, 3 D) -> (B, L, D)."""
    q, k, v = (split(part, heads) for part in qkv_BLD.chunk(3, dim=-1))
    return merge(functional.scaled_dot_product_attention(q, k, v))


def split(x_BLD: Tensor, heads: int) -> Tensor:
    """Channels to heads."""
    return x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, K, L, E)


def merge(x_BKLE: Tensor) -> Tensor:
    """Heads to channels."""
    return x_BKLE.transpose(1, 2).flatten(2)
