"""ViViT: transformers over tubelets, in the four ways to factorise space and time (Arnab et al.,
arXiv:2103.15691).

B clips, T tubelets in time, S places in space, D channels, L tokens of a sequence, P bytes of an image patch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt
from typing import get_args

import torch
from torch import Tensor, nn

from models.clip import positions
from models.config import Activation, Classes, Kernels, Variant, suggest
from models.model import Model
from models.tokenizer import TubeTokenizer, matching
from models.transformer import Block, Encoder, SelfAttention, attend
from models.weights import fit
from pipeline.plan import CHANNELS, Plan


class SpaceTimeBlock(Block):
    """x + MSA over space, x + MSA over time, x + Mlp, each of LN x, on (B, T, S, D) (model 3).

    At first the output projection of the attention over time is zero, so that the block is one of an image
    ViT. (Section 3.4 zeroes all its weights; but with zero values and a zero projection neither ever gets a
    gradient.)
    """

    def __init__(
        self, dim: int, heads: int, mlp_dim: int, *, eps: float = 1e-6, activation: Activation = "gelu"
    ) -> None:
        super().__init__(dim, heads, mlp_dim, eps=eps, activation=activation)
        self.norm_time = nn.LayerNorm(dim, eps=eps)
        self.attention_time = SelfAttention(dim, heads)
        nn.init.zeros_(self.attention_time.out.weight)

    def run(self, x_BTSD: Tensor) -> Tensor:
        x_BTSD = x_BTSD + over_space(self.attention, self.norm1(x_BTSD))
        x_BTSD = x_BTSD + over_time(self.attention_time, self.norm_time(x_BTSD))
        return x_BTSD + self.mlp(self.norm2(x_BTSD))


class DotProductBlock(Block):
    """A block with `DotProductAttention`, on (B, T, S, D) (model 4)."""

    def __init__(
        self, dim: int, heads: int, mlp_dim: int, *, eps: float = 1e-6, activation: Activation = "gelu"
    ) -> None:
        super().__init__(dim, heads, mlp_dim, eps=eps, activation=activation)
        self.attention = DotProductAttention(dim, heads)


class DotProductAttention(SelfAttention):
    """The first half of the heads attends within a time, the second within a place."""

    def __init__(self, dim: int, heads: int) -> None:
        if heads % 2:
            raise ValueError(f"heads = {heads}: factorised dot-product attention takes an even number")
        super().__init__(dim, heads)

    def forward(self, x_BTSD: Tensor) -> Tensor:
        halves = self.qkv(x_BTSD).unflatten(-1, (3, 2, -1)).unbind(-2)
        space, time = (half.flatten(-2) for half in halves)
        attention = partial(attend, heads=self.heads // 2)
        return self.out(torch.cat([over_space(attention, space), over_time(attention, time)], dim=-1))


class ViViT(Model):
    """A plan of one tube; its variants are the paper's models 1 to 4 (section 3.3) and its baseline.

    joint: all tokens attend to each other. factorised_encoder: a spatial ViT gives a token for each time,
    and a temporal one of `temporal_layers` follows. frame_mean: the mean of those tokens instead.
    factorised_self_attention and factorised_dot_product: see their blocks.
    The embedding is the class token after the final LN; of the last two, which have none, the tokens' mean.

    norm_pre: an LN before the first block, as CLIP towers have one, if the weights are to come from such.

    Positions are learned, one for each place of the plan's grid, so weights are for clips of one length and
    size. An image, with tubes of one frame, is the first time of a clip. `mirrored` makes no difference:
    flipping the tubes flips the grid of places onto itself.
    """

    def __init__(
        self,
        plan: Plan,
        dim: int,
        layers: int,
        heads: int,
        *,
        variant: Variant,
        temporal_layers: int = 4,
        activation: Activation = "gelu_tanh",
        norm_pre: bool = False,
        num_classes: Classes | None = None,
    ) -> None:
        if len(plan.tubes) != 1:
            raise ValueError(f"ViViT takes a plan of one tube, but this one has {len(plan.tubes)}: {plan}")
        if variant not in get_args(Variant):
            raise ValueError(f"variant = {variant!r}: {suggest(variant, get_args(Variant))}")
        super().__init__(plan, plan.image(), dim, num_classes)
        self.variant = variant
        times, rows, columns = plan.tubes[0].grid
        places = rows * columns
        self.tokenizer = TubeTokenizer(plan, dim)
        self.norm_pre = nn.LayerNorm(dim, eps=1e-5) if norm_pre else nn.Identity()
        if variant in ("factorised_self_attention", "factorised_dot_product"):
            block = SpaceTimeBlock if variant == "factorised_self_attention" else DotProductBlock
            self.positional_embedding = _table(times * places, dim)
            self.encoder = Encoder(dim, layers, heads, 4 * dim, activation=activation, block=block)
        else:
            self.class_embedding = nn.Parameter(torch.zeros(dim))
            self.positional_embedding = _table(1 + (times * places if variant == "joint" else places), dim)
            self.encoder = Encoder(dim, layers, heads, 4 * dim, activation=activation)
        if variant == "factorised_encoder":
            self.temporal_class_embedding = nn.Parameter(torch.zeros(dim))
            self.temporal_positional_embedding = _table(1 + times, dim)
            self.temporal_encoder = Encoder(dim, temporal_layers, heads, 4 * dim, activation=activation)

    def embed(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        (tube,) = matching(tubes, self.plans).tubes
        times, rows, columns = tube.grid
        x_BTSD = self.tokenizer(tubes).unflatten(1, (times, rows * columns))
        if self.variant == "joint":
            x_BLD = begin(x_BTSD.flatten(1, 2), self.class_embedding, self.positional_embedding)
            return self.encoder(self.norm_pre(x_BLD))[:, 0].float()
        if self.variant in ("factorised_self_attention", "factorised_dot_product"):
            positions_TSD = self.positional_embedding.unflatten(0, (-1, rows * columns))[:times]
            return self.encoder(self.norm_pre(x_BTSD + positions_TSD)).float().mean(dim=(1, 2))
        x_bLD = begin(x_BTSD.flatten(0, 1), self.class_embedding, self.positional_embedding)
        z_BTD = self.encoder(self.norm_pre(x_bLD))[:, 0].unflatten(0, (-1, times))
        if self.variant == "frame_mean":
            return z_BTD.float().mean(dim=1)
        z_BLD = begin(z_BTD, self.temporal_class_embedding, self.temporal_positional_embedding)
        return self.temporal_encoder(z_BLD)[:, 0].float()


def over_space(function: Callable[[Tensor], Tensor], x_BTSD: Tensor) -> Tensor:
    """A function of sequences (b, L, D), applied to the tokens of each time."""
    return function(x_BTSD.flatten(0, 1)).unflatten(0, x_BTSD.shape[:2])


def over_time(function: Callable[[Tensor], Tensor], x_BTSD: Tensor) -> Tensor:
    """The same, applied to the tokens of each place."""
    return over_space(function, x_BTSD.transpose(1, 2)).transpose(1, 2)


def begin(x_BLD: Tensor, class_D: Tensor, table_LD: Tensor) -> Tensor:
    """A class token before the others, and positions: the first ones, where the table has more."""
    first_B1D = class_D.expand(len(x_BLD), 1, -1).to(x_BLD.dtype)
    x_BLD = torch.cat([first_B1D, x_BLD], dim=1)
    return x_BLD + table_LD[: x_BLD.shape[1]]


def inflate(model: ViViT, image: Mapping[str, Tensor], kernels: Kernels) -> None:
    """Fill a new model from the weights of an image ViT (section 3.4); head and temporal encoder stay.

    `image` has patch.weight (D, p*p*3) in the tokenizer's layout, for its pixel statistics, and maybe
    patch.bias; class_embedding (D,); positional_embedding (1 + grid**2, D); blocks.i... named as `Block`
    names them; norm_post.weight and .bias, the final LN; and norm_pre if the model has one. ValueError
    names what is missing or does not fit.

    kernels: "central" looks at the middle frame of a tubelet, k//2, as the image ViT would; "inflate"
        at the mean of its frames.
    Positions are resized to the grid and repeated over time. Attention over time starts as that over
    space, behind its zero projection.
    """
    (tube,) = model.plan.tubes
    frames, height, width = tube.kernel
    if height != width:
        raise ValueError(f"the patches of an image ViT are square, but the model's are {height}x{width}")
    fit(_expected(model, image), image, "model.init.weights")

    weight_DP = image["patch.weight"]
    weight_DTP = weight_DP[:, None].repeat(1, frames, 1) / frames
    if kernels == "central":
        weight_DTP = torch.zeros_like(weight_DTP)
        weight_DTP[:, frames // 2] = weight_DP
    table_LD = image["positional_embedding"]
    first_1D, places_SD = positions(table_LD, isqrt(len(table_LD) - 1), tube.grid[1:]).split(
        [1, tube.grid[1] * tube.grid[2]]
    )
    if model.variant not in ("factorised_encoder", "frame_mean"):
        places_SD = places_SD.repeat(tube.grid[0], 1)

    state = model.state_dict()
    state[f"tokenizer.weight.{tube.name}"] = weight_DTP.flatten(1)
    state[f"tokenizer.bias.{tube.name}"] = image.get("patch.bias", torch.zeros(model.dim))
    if "class_embedding" in state:
        state["class_embedding"] = image["class_embedding"]
        places_SD = torch.cat([first_1D, places_SD])
    state["positional_embedding"] = places_SD
    for name in model.norm_pre.state_dict():
        state[f"norm_pre.{name}"] = image[f"norm_pre.{name}"]
    for name in _spatial(model):
        state[f"encoder.{name}"] = image[_image_name(name)]
        if model.variant == "factorised_self_attention" and (".norm1." in name or ".qkv." in name):
            copy = name.replace("norm1", "norm_time").replace("attention", "attention_time")
            state[f"encoder.{copy}"] = image[name]
    model.load_state_dict(state)


def _expected(model: ViViT, image: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names and shapes, on the meta device, that `inflate` wants of this image."""
    (tube,) = model.plan.tubes
    like = partial(torch.empty, device="meta")
    grid = 1
    if "positional_embedding" in image:  # of any square grid
        grid = max(1, isqrt(max(0, image["positional_embedding"].numel() // model.dim - 1)))
    expected = {
        "patch.weight": like(model.dim, tube.kernel[1] * tube.kernel[2] * CHANNELS),
        "class_embedding": like(model.dim),
        "positional_embedding": like(1 + grid**2, model.dim),
    }
    if "patch.bias" in image:
        expected["patch.bias"] = like(model.dim)
    expected |= {f"norm_pre.{name}": tensor for name, tensor in model.norm_pre.state_dict().items()}
    return expected | {_image_name(name): tensor for name, tensor in _spatial(model).items()}


def _spatial(model: ViViT) -> dict[str, Tensor]:
    """The state of the encoder but for what attends over time."""
    state = model.encoder.state_dict()
    return {name: x for name, x in state.items() if "_time." not in name}


def _image_name(name: str) -> str:
    """The encoder's names as an image ViT has them."""
    return f"norm_post.{name.removeprefix('norm.')}" if name.startswith("norm.") else name


def _table(rows: int, dim: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(rows, dim))
