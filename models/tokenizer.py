"""uint8 tubes -> tokens: one linear layer per tube, with the pixel normalisation folded into its weights.

B clips, N tokens, D channels, P = kT*kH*kW*3 bytes of a tube in (T, H, W, C) order, V = P / 3 pixels, C = 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.plan import CHANNELS, Plan, Sizes, Tube

# One pixel statistics for all models: OpenAI CLIP's. `clip_weights` converts towers trained with others.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class TubeTokenizer(nn.Module):
    """A weight (dim, kT*kH*kW*3) and a bias (dim,) per tube (TubeViT, arXiv:2212.03229, section 3.1).

    Equals a strided 3-D convolution of the normalised clip at the tubes' places. Normalisation and the
    scale of a byte are folded into the weights at each forward, so that the matrix product takes x - 128,
    which bfloat16 holds exactly: y = (x - 128) @ (w / 255 std) + b + sum(w * (128/255 - mean) / std).

    merges: {tube: (k_t, k_h, k_w)}, space-to-depth (section 3.4): the tube's kernel gives dim / (k_t k_h k_w)
        channels, and those of neighbouring places, t slowest and w fastest, are joined into one token. Places
        that are left over at the far end give none.
    """

    scale: Tensor  # (C,)
    shift: Tensor  # (C,)

    def __init__(
        self, plan: Plan, dim: int, *, bias: bool = True, merges: Mapping[str, Sizes] | None = None
    ) -> None:
        super().__init__()
        self.plan = plan
        self.dim = dim
        self.merges = dict(merges or {})
        self.weight = nn.ParameterDict()
        self.bias = nn.ParameterDict()
        self._make_weights()
        for tube in plan.tubes if bias else ():
            self.bias[tube.name] = nn.Parameter(torch.zeros(self._channels(tube)))
        mean_C, std_C = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer("scale", 1 / (255 * std_C), persistent=False)
        self.register_buffer("shift", (128 / 255 - mean_C) / std_C, persistent=False)

    def forward(self, tubes: Mapping[str, Tensor]) -> Tensor:
        """{name: uint8 (B, n_t, n_h, n_w, kT, kH, kW, 3)} -> (B, N, dim): tubes in plan order, w fastest.

        Tubes that are absent, as the 3-D ones of an image are, give no tokens.
        """
        tokens_BND = [self._project(tube, tubes[tube.name]) for tube in self.plan.tubes if tube.name in tubes]
        return torch.cat(tokens_BND, dim=1)

    @property
    def tokens(self) -> int:
        """How many tokens a clip gives."""
        return sum(math.prod(merged_grid(tube, self.merges)) for tube in self.plan.tubes)

    def kernel(self, tube: Tube) -> Tensor:
        """The weight (channels, kT*kH*kW*3) of a tube."""
        return self.weight[tube.name]

    def _make_weights(self) -> None:
        for tube in self.plan.tubes:
            volume = CHANNELS * math.prod(tube.kernel)
            # With E|w|^2 = 1 a token's standard deviation is the rms of the normalised pixels, whatever the
            # tube's volume: about 1, beside position channels of rms 0.7.
            weight = nn.init.trunc_normal_(torch.empty(self._channels(tube), volume), std=volume**-0.5)
            self.weight[tube.name] = nn.Parameter(weight)

    def _channels(self, tube: Tube) -> int:
        return self.dim // math.prod(self.merges.get(tube.name, (1, 1, 1)))

    def _project(self, tube: Tube, x: Tensor) -> Tensor:
        weight_DP, bias_D = self._fold(tube)
        x_BNP = x.reshape(len(x), -1, weight_DP.shape[1]).to(weight_DP.dtype).sub_(128)
        tokens_BND = functional.linear(x_BNP, weight_DP, bias_D)
        if tube.name not in self.merges:
            return tokens_BND
        (n_t, n_h, n_w), (k_t, k_h, k_w) = merged_grid(tube, self.merges), self.merges[tube.name]
        whole = tokens_BND.unflatten(1, tuple(x.shape[1:4]))[:, : n_t * k_t, : n_h * k_h, : n_w * k_w]
        parts = whole.unflatten(3, (n_w, k_w)).unflatten(2, (n_h, k_h)).unflatten(1, (n_t, k_t))
        return parts.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)

    def _fold(self, tube: Tube) -> tuple[Tensor, Tensor]:
        """The weights for x - 128, summed in float32 and rounded once, to what the product computes in."""
        weight = self.kernel(tube)
        # A whole row of each, as products that broadcast along an axis of three are several times slower.
        scale_P, shift_P = (x.repeat(math.prod(tube.kernel)) for x in (self.scale, self.shift))
        weight_DP = weight.float() * scale_P
        bias_D = (weight.float() * shift_P).sum(1)
        if tube.name in self.bias:
            bias_D = bias_D + self.bias[tube.name].float()
        dtype = compute_dtype(weight)
        return weight_DP.to(dtype), bias_D.to(dtype)


class InterpolatedTokenizer(TubeTokenizer):
    """All kernels resized from one of 8x8x8, each with a bias of its own (TubeViT, Table 7e and Charades).

    Trilinear, and antialiased where an axis shrinks: else a tube of one frame would see two of the eight
    slices and the others learn nothing from it. Scaled by the ratio of the volumes, so that what a kernel
    gives on a flat picture does not depend on its size.
    """

    SOURCE = (8, 8, 8)

    def _make_weights(self) -> None:
        volume = CHANNELS * math.prod(self.SOURCE)
        weight = nn.init.trunc_normal_(torch.empty(self.dim, volume), std=volume**-0.5)
        self.weight["shared"] = nn.Parameter(weight)
        for size in {k for tube in self.plan.tubes for k in tube.kernel}:
            self.register_buffer(f"resize_{size}", resizing(self.SOURCE[0], size), persistent=False)

    def kernel(self, tube: Tube) -> Tensor:
        t, h, w = (self.get_buffer(f"resize_{size}") for size in tube.kernel)
        source_DTHWC = self.weight["shared"].float().unflatten(1, (*self.SOURCE, CHANNELS))
        resized = torch.einsum("dthwc,Tt,Hh,Ww->dTHWc", source_DTHWC, t, h, w)
        ratio = math.prod(self.SOURCE) / math.prod(tube.kernel)
        return (ratio * resized).flatten(1).to(self.weight["shared"].dtype)


def resizing(source: int, size: int) -> Tensor:
    """float32 (size, source): the linear map of antialiased linear interpolation; rows sum to 1."""
    with torch.device("cpu"):
        square = torch.eye(source)[None, None]
        weights = functional.interpolate(square, size=(size, source), mode="bilinear", antialias=True)[0, 0]
    return weights.to(torch.get_default_device())


def merged_grid(tube: Tube, merges: Mapping[str, Sizes]) -> tuple[int, int, int]:
    """(n_t, n_h, n_w) of a tube's tokens: of its places, divided by what space-to-depth joins."""
    t, h, w = (n // k for n, k in zip(tube.grid, merges.get(tube.name, (1, 1, 1)), strict=True))
    return t, h, w


def compute_dtype(weight: Tensor) -> torch.dtype:
    """What a matrix product with `weight` computes in: autocast's dtype, else its own."""
    kind = weight.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def from_conv3d(weight_DCTHW: Tensor) -> Tensor:
    """The weight of a Conv3d (D, 3, kT, kH, kW) in our layout (D, kT*kH*kW*3)."""
    return weight_DCTHW.permute(0, 2, 3, 4, 1).flatten(1)


def to_conv3d(weight_DP: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    """The inverse of `from_conv3d`."""
    return weight_DP.unflatten(1, (*kernel, CHANNELS)).permute(0, 4, 1, 2, 3)


def matching(tubes: Mapping[str, Tensor], plans: list[Plan]) -> Plan:
    """The first plan that the batch was cut by: same tube names, shapes as given there, uint8.

    ValueError shows both sides if there is none.
    """
    got = {name: tuple(x.shape[1:]) for name, x in tubes.items()}
    for plan in plans:
        if got == {tube.name: tube.shape for tube in plan.tubes}:
            wrong = {name: x.dtype for name, x in tubes.items() if x.dtype != torch.uint8}
            if wrong:
                raise ValueError(f"tubes must be uint8 pixels, but are {wrong}")
            return plan
    wanted = " or ".join(str({tube.name: tube.shape for tube in plan.tubes}) for plan in plans)
    raise ValueError(f"tubes have shapes {got} after the batch axis, but the model wants {wanted}")
