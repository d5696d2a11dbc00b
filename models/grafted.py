"""Tubes grafted onto a large frozen image ViT (TubeViT, arXiv:2212.03229, section 3.6, "Scaling up").

The tubes of a small trained TubeViT become as wide as the large model by space-to-depth, and enter its
sequence beside its own patches. Its first layers stay frozen; after them a gate, zero at first, adds the
sequence that went in (Eq 8), and the layers after it train. The large model is a CLIP tower here; its class
token reads out.

B clips, F key frames, N tube tokens, L = 1 + F * patches + N tokens, D channels, E embedding channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.clip import Clip
from models.config import Classes
from models.model import Model
from models.positions import table
from models.tokenizer import TubeTokenizer, matching
from pipeline.plan import Plan, Sizes


class Grafted(Model):
    """What trains: the gate, CLIP's blocks from `frozen_layers` on, the head, and tubes if not carried.

    All key frames share one sequence and one class token, and have CLIP's own positions: time is told by
    the tubes, whose fixed positions are those of TubeViT. Both go through CLIP's first LN. With one key frame
    and no tubes, as an image has, and the gate closed, this is CLIP until its blocks have been trained.

    carried: the tubes come trained, and are frozen like the layers that they go into.
    """

    positions: Tensor  # (2, N, D)

    def __init__(
        self,
        plan: Plan,
        clip: Clip,
        tubes: Plan,
        frozen_layers: int,
        *,
        merges: Mapping[str, Sizes] | None = None,
        literal_positions: bool = False,
        carried: bool = False,
        num_classes: Classes | None = None,
    ) -> None:
        super().__init__(plan, plan.image(), clip.dim, num_classes)
        self.clip = clip
        self.frozen_layers = frozen_layers
        self.tubes = tubes
        self.tokenizer = TubeTokenizer(tubes, clip.tower.width, merges=merges)
        self.tokenizer.requires_grad_(not carried)
        self.gate = nn.Parameter(torch.zeros(()))
        for block in clip.blocks[frozen_layers:]:
            block.requires_grad_(True)
        positions = table(tubes, clip.tower.width, merges, literal=literal_positions)
        self.register_buffer("positions", positions, persistent=False)

    def embed(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        first_BLD = self.enter(tubes, mirrored)
        x_BLD = first_BLD
        for block in self.clip.blocks[: self.frozen_layers]:
            x_BLD = block(x_BLD)
        x_BLD = x_BLD + self.gate.tanh() * first_BLD
        for block in self.clip.blocks[self.frozen_layers :]:
            x_BLD = block(x_BLD)
        return self.clip.leave(x_BLD, len(x_BLD))[:, 0]

    def enter(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        """Tubes -> (B, L, D): [class token, patches of all key frames, tubes], the z^0 of Eq 8."""
        held = matching(tubes, self.plans)
        clip_plan = self.clip.plan if held == self.plan else self.clip.image_plan
        assert clip_plan is not None
        patches_bLD = self.clip.enter(held.take(tubes, clip_plan))
        batch = len(next(iter(tubes.values())))
        frames_BFLD = patches_bLD.unflatten(0, (batch, -1))
        # The class token sees no patch before the first block: it is the same for all frames.
        first = self.clip.tower.class_tokens
        parts = [frames_BFLD[:, 0, :first], frames_BFLD[:, :, first:].flatten(1, 2)]
        if held == self.plan:
            positions_ND = self.positions[0] if mirrored is None else self.positions[mirrored.long()]
            tokens_BND = self.tokenizer(held.take(tubes, self.tubes)) + positions_ND
            parts.append(self.clip.norm_pre(tokens_BND))
        return torch.cat(parts, dim=1)
