"""A frozen CLIP that learns to see motion: TubeViT beside it, joined by gated cross-attention.

The gate is TubeViT's tanh(alpha) with alpha = 0 (arXiv:2212.03229, section 3.6, Eq 8), on cross-attention
as in Flamingo (arXiv:2204.14198, section 3.1.2), so that tubes never enter CLIP's own sequence: with closed
gates the model is CLIP, bit for bit under no_grad.

B clips, F key frames each, L CLIP tokens a frame, D CLIP channels, N tube tokens, S TubeViT channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.clip import Clip
from models.config import Classes
from models.model import Model
from models.tokenizer import matching
from models.transformer import CrossAttention, Layer, Mlp
from models.tubevit import TubeTrunk
from pipeline.plan import Plan


class Adapter(Layer):
    """x + tanh(a) CrossAttention(LN x, tubes), then x + tanh(b) Mlp(LN x), with a = b = 0 at first.

    The branches start at ordinary weights: with a zero gate and a zero projection neither gets a gradient.
    Gates should see no weight decay. A closed gate hides any finite value; 0 * inf is still NaN, so an
    overflow in a branch shows.
    """

    def __init__(self, dim: int, source_dim: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim, eps=1e-5)
        self.attention = CrossAttention(dim, source_dim, heads)
        self.gate_attention = nn.Parameter(torch.zeros(()))
        self.norm_mlp = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, 4 * dim)
        self.gate_mlp = nn.Parameter(torch.zeros(()))

    def run(self, x_BLD: Tensor, tubes_BNS: Tensor) -> Tensor:
        x_BLD = x_BLD + self.gate_attention.tanh() * self.attention(self.norm_attention(x_BLD), tubes_BNS)
        return x_BLD + self.gate_mlp.tanh() * self.mlp(self.norm_mlp(x_BLD))


class Gated(Model):
    """Frozen CLIP + trainable TubeViT trunk + an adapter before each of the given CLIP blocks.

    What trains: `trunk`, `adapters` (their gates included) and `head`. Keys and values are the trunk's
    normed tokens, computed once per clip for all its key frames. The embedding is CLIP's: the mean over
    frames, unnormalised. An image is one key frame, with the trunk's 2-D tokens.
    """

    def __init__(
        self,
        plan: Plan,
        clip: Clip,
        trunk: TubeTrunk,
        adapter_layers: tuple[int, ...],
        *,
        num_classes: Classes | None = None,
    ) -> None:
        super().__init__(plan, plan.image(), clip.dim, num_classes)
        self.clip = clip
        self.trunk = trunk
        self.first = min(adapter_layers)
        tower = clip.tower
        self.adapters = nn.ModuleDict(
            {str(layer): Adapter(tower.width, trunk.dim, tower.heads) for layer in adapter_layers}
        )

    def embed(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        clip_tubes, trunk_tubes = self._share(tubes)
        batch = len(next(iter(tubes.values())))
        with torch.no_grad():  # nothing before the first adapter can learn, so no graph is built for it
            x_bLD = self.clip.enter(clip_tubes)
            for block in self.clip.blocks[: self.first]:
                x_bLD = block(x_bLD)
        tubes_BNS = self.trunk(trunk_tubes, mirrored)
        for layer in range(self.first, len(self.clip.blocks)):
            if str(layer) in self.adapters:
                all_frames_BLD = x_bLD.reshape(batch, -1, x_bLD.shape[-1])
                x_bLD = self.adapters[str(layer)](all_frames_BLD, tubes_BNS).reshape(x_bLD.shape)
            x_bLD = self.clip.blocks[layer](x_bLD)
        return self.clip.leave(x_bLD, batch).mean(dim=1)

    def _share(self, tubes: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tubes as CLIP and as the trunk name them: views, no copies."""
        held = matching(tubes, self.plans)
        clip_plan, trunk_plan = self.clip.plan, self.trunk.plan
        if held != self.plan and self.clip.image_plan is not None and self.trunk.image_plan is not None:
            clip_plan, trunk_plan = self.clip.image_plan, self.trunk.image_plan
        return held.take(tubes, clip_plan), held.take(tubes, trunk_plan)
