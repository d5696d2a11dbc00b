"""What the models are measured against, on the same weights: 3-D convolutions, and transformers' ViViT.

B clips, T x H x W pixels, C = 3, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from models.tokenizer import MEAN, STD, TubeTokenizer, compute_dtype, from_conv3d, to_conv3d
from models.tubevit import TubeViT


class Normalise(nn.Module):
    """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W), in as few passes as plain torch takes."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None, None])

    def forward(self, clips_BTHWC: Tensor) -> Tensor:
        return clips_BTHWC.permute(0, 4, 1, 2, 3).float().div_(255).sub_(self.mean).div_(self.std)


class ConvTokenizer(nn.Module):
    """What a `TubeTokenizer` computes, as one strided Conv3d a tube over the dense normalised clip."""

    def __init__(self, tokenizer: TubeTokenizer) -> None:
        super().__init__()
        self.offsets = [tube.offset for tube in tokenizer.plan.tubes]
        self.convolutions = nn.ModuleList()
        for tube in tokenizer.plan.tubes:
            convolution = nn.Conv3d(3, tokenizer.dim, tube.kernel, tube.stride)
            kernel = to_conv3d(tokenizer.weight[tube.name], tube.kernel)
            convolution.load_state_dict({"weight": kernel, "bias": tokenizer.bias[tube.name]})
            self.convolutions.append(convolution)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, N, D): tubes in plan order."""
        # Once, where autocast would do so for each convolution.
        x_BCTHW = x_BCTHW.to(compute_dtype(self.convolutions[0].weight))
        tokens = [
            convolution(x_BCTHW[:, :, t:, h:, w:]).flatten(2)
            for (t, h, w), convolution in zip(self.offsets, self.convolutions, strict=True)
        ]
        return torch.cat(tokens, dim=2).transpose(1, 2)


class ConvTubeViT(nn.Module):
    """A TubeViT whose tokens are convolved: uint8 (B, T, H, W, 3) -> embeddings (B, D)."""

    def __init__(self, model: TubeViT) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.tokenizer = ConvTokenizer(model.trunk.tokenizer)
        self.register_buffer("positions", model.trunk.positions[0].clone())
        self.encoder = deepcopy(model.trunk.encoder)
        self.pool = deepcopy(model.pool)

    def forward(self, clips_BTHWC: Tensor) -> Tensor:
        x_BND = self.tokenizer(self.normalise(clips_BTHWC)) + self.get_buffer("positions")
        return self.pool(self.encoder(x_BND))


def from_transformers(theirs: Mapping[str, Tensor], tube: str) -> dict[str, Tensor]:
    """The weights of transformers' VivitModel under the names of `models.vivit.ViViT`, its model 1."""
    ours = {
        f"tokenizer.weight.{tube}": from_conv3d(theirs["embeddings.patch_embeddings.projection.weight"]),
        f"tokenizer.bias.{tube}": theirs["embeddings.patch_embeddings.projection.bias"],
        "class_embedding": theirs["embeddings.cls_token"].flatten(),
        "positional_embedding": theirs["embeddings.position_embeddings"][0],
    }
    names = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attention.out",
        "mlp.fc1": "mlp.up",
        "mlp.fc2": "mlp.down",
    }
    layers = sum(name.endswith("layernorm_before.weight") for name in theirs)
    for kind in ("weight", "bias"):
        ours[f"encoder.norm.{kind}"] = theirs[f"layernorm.{kind}"]
        for i in range(layers):
            for theirs_name, name in names.items():
                ours[f"encoder.blocks.{i}.{name}.{kind}"] = theirs[f"layers.{i}.{theirs_name}.{kind}"]
            parts = [theirs[f"layers.{i}.attention.{part}_proj.{kind}"] for part in "qkv"]
            ours[f"encoder.blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
    return ours
