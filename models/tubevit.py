"""TubeViT: a plain ViT over sparse video tubes (Piergiovanni et al., arXiv:2212.03229).

B clips, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.config import Activation, Classes, Kernels
from models.image_weights import tube_kernel
from models.model import Model
from models.positions import table
from models.tokenizer import InterpolatedTokenizer, TubeTokenizer, matching
from models.transformer import Encoder
from models.weights import fit
from pipeline.plan import Plan, Sizes


class TubeTrunk(nn.Module):
    """Tokens, their fixed positions, and a pre-LN encoder with a final LN; no class token (section 3).

    merges: space-to-depth of tubes (section 3.4); interpolated: all kernels are resized from one (Table 7e).
    literal_positions: as the paper prints them (see models.positions).
    norm_pre, activation: what the encoder of a CLIP tower needs, if the weights are to come from one.
    """

    positions: Tensor  # (2, N, D)
    image_positions: Tensor | None

    def __init__(
        self,
        plan: Plan,
        dim: int,
        layers: int,
        heads: int,
        *,
        merges: Mapping[str, Sizes] | None = None,
        interpolated: bool = False,
        literal_positions: bool = False,
        norm_pre: bool = False,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.plan = plan
        self.image_plan = plan.image()
        self.dim = dim
        tokenizer = InterpolatedTokenizer if interpolated else TubeTokenizer
        self.tokenizer = tokenizer(plan, dim, merges=merges)
        self.norm_pre = nn.LayerNorm(dim, eps=1e-5) if norm_pre else nn.Identity()
        self.encoder = Encoder(dim, layers, heads, 4 * dim, activation=activation)
        # They follow from the plan, so a checkpoint serves clips of another length or size.
        self.register_buffer(
            "positions", table(plan, dim, merges, literal=literal_positions), persistent=False
        )
        images = None
        if self.image_plan is not None:
            images = table(self.image_plan, dim, merges, literal=literal_positions)
        self.register_buffer("image_positions", images, persistent=False)

    def forward(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        """Tubes of `plan` or of `image_plan` -> (B, N, D)."""
        plans = [plan for plan in (self.plan, self.image_plan) if plan is not None]
        positions_2ND = self.positions
        if matching(tubes, plans) != self.plan and self.image_positions is not None:
            positions_2ND = self.image_positions
        positions = positions_2ND[0] if mirrored is None else positions_2ND[mirrored.long()]
        return self.encoder(self.norm_pre(self.tokenizer(tubes) + positions))


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

    def __init__(self, trunk: TubeTrunk, *, num_classes: Classes | None = None) -> None:
        super().__init__(trunk.plan, trunk.image_plan, trunk.dim, num_classes)
        self.trunk = trunk
        self.pool = AttentionPool(trunk.dim)

    def embed(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        return self.pool(self.trunk(tubes, mirrored)).float()


def inflate(trunk: TubeTrunk, image: Mapping[str, Tensor], kernels: Kernels) -> None:
    """Start from an image ViT, in the names of `models.image_weights`; ValueError names what does not fit.

    Its blocks and LNs come along unchanged, its patch kernel becomes that of each tube (see `tube_kernel`);
    its class token and learned positions are left, as the trunk has neither. A tube of space-to-depth gives
    fewer channels than the image kernel, with a meaning of their own: it keeps its random kernel.
    """
    blocks = {
        name.replace("blocks.", "encoder.blocks.").replace("norm_post.", "encoder.norm."): tensor
        for name, tensor in image.items()
        if name.startswith(("blocks.", "norm_post.", "norm_pre."))
    }
    own = {name: x for name, x in trunk.state_dict().items() if not name.startswith("tokenizer.")}
    fit(own, blocks, "model.init.weights")
    trunk.load_state_dict(blocks, strict=False)
    tokenizer = trunk.tokenizer
    with torch.no_grad():
        if isinstance(tokenizer, InterpolatedTokenizer):
            kernel = tube_kernel(image["patch.weight"], tokenizer.SOURCE, kernels)
            tokenizer.weight["shared"].copy_(kernel)
        for tube in trunk.plan.tubes:
            if tube.name in tokenizer.merges:
                continue
            if tube.name in tokenizer.weight:
                tokenizer.weight[tube.name].copy_(tube_kernel(image["patch.weight"], tube.kernel, kernels))
            if "patch.bias" in image:
                tokenizer.bias[tube.name].copy_(image["patch.bias"])
