"""DualPath: one frozen CLIP tower on key frames and on framesets (Park et al., CVPR 2023).

Of github.com/jongwoopark7978/DualPath left out: its third adapter of the temporal path, before attention,
which stops that branch from learning; its learned position table; and training CLIP's own embeddings.

B clips, F images each on a path (b = B*F), N patches an image, L = 1 + N tokens, D channels, E of an
embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from models.adapters import Bottleneck
from models.clip import Clip
from models.config import Classes
from models.heads import classifier
from models.model import Model
from models.positions import sincos_3d
from models.tokenizer import matching
from models.towers import Tower
from models.transformer import Block, Layer
from pipeline.plan import Plan, Tube


class Parallel(Layer):
    """A frozen block with adapters beside its branches: x + MHA(LN x) + A(LN x), x + MLP(LN x) + A(LN x)."""

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.attention = Bottleneck(dim, bottleneck)
        self.mlp = Bottleneck(dim, bottleneck)

    def run(self, x_bLD: Tensor, block: Block) -> Tensor:
        u_bLD = block.norm1(x_bLD)
        x_bLD = x_bLD + block.scale1(block.attention(u_bLD)) + self.attention(u_bLD)
        u_bLD = block.norm2(x_bLD)
        return x_bLD + block.scale2(block.mlp(u_bLD)) + self.mlp(u_bLD)


class Serial(Layer):
    """A frozen block whose branches end in adapters: x + A(MHA(LN x)), then x + A(MLP(LN x)).

    As adapters are 0 at first, the block is the identity.
    """

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.attention = Bottleneck(dim, bottleneck)
        self.mlp = Bottleneck(dim, bottleneck)

    def run(self, x_bLD: Tensor, block: Block) -> Tensor:
        x_bLD = x_bLD + self.attention(block.scale1(block.attention(block.norm1(x_bLD))))
        return x_bLD + self.mlp(block.scale2(block.mlp(block.norm2(x_bLD))))


class DualPath(Model):
    """A plan of `plans.dualpath`, adapters on both paths. What trains: `spatial`, `temporal` and `head`.

    The spatial path is CLIP on 8 key frames. The temporal path is the same tower on framesets, images of
    4x4 small frames, with fixed positions of absolute time and space in place of CLIP's own. A path's
    embedding is the mean over its images; the model's is (temporal, spatial), 2 * E channels. Before it is
    trained the temporal half is the same for every clip. An image has no frameset, so there is no image plan.
    """

    positions: Tensor  # (2, F * N, D) of the framesets' tokens

    def __init__(
        self, plan: Plan, tower: Tower, *, bottleneck: int = 128, num_classes: Classes | None = None
    ) -> None:
        super().__init__(plan, None, 2 * tower.embed_dim, None)
        self.key_frames, self.framesets = plan.tubes
        self.clip = Clip(Plan(tubes=(self.key_frames,)), tower)
        self.spatial = nn.ModuleList(Parallel(tower.width, bottleneck) for _ in self.clip.blocks)
        self.temporal = nn.ModuleList(Serial(tower.width, bottleneck) for _ in self.clip.blocks)
        # The readout stands before the classifier, not in the embedding: until it is trained it is noise.
        self.head = classifier(self.dim, num_classes, hidden=tower.embed_dim)
        self.register_buffer("positions", table(self.framesets, tower.width), persistent=False)

    @property
    def tokens(self) -> int:
        """Of key frames and framesets, which go through the same tokenizer."""
        return self.key_frames.tokens + self.framesets.tokens

    def embed(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        matching(tubes, self.plans)
        key_frames, framesets = tubes[self.key_frames.name], tubes[self.framesets.name]
        spatial_bLD = self.clip.enter({self.key_frames.name: key_frames})
        temporal_bLD = self._enter(framesets, mirrored)
        for block, parallel, serial in zip(self.clip.blocks, self.spatial, self.temporal, strict=True):
            spatial_bLD = parallel(spatial_bLD, block)
            temporal_bLD = serial(temporal_bLD, block)
        paths_bLD = (temporal_bLD, spatial_bLD)
        return torch.cat([self.clip.leave(x_bLD, len(key_frames)).mean(1) for x_bLD in paths_bLD], dim=1)

    def _enter(self, framesets: Tensor, mirrored: Tensor | None) -> Tensor:
        """uint8 (B, F, n_h, n_w, 1, p, p, 3) -> (B*F, L, D). The class token's position is 0."""
        positions = self.positions[0] if mirrored is None else self.positions[mirrored.long()]
        x_BND = self.clip.patch({self.key_frames.name: framesets}) + positions
        x_bND = x_BND.unflatten(1, (framesets.shape[1], -1)).flatten(0, 1)
        return self.clip.norm_pre(self.clip.begin(x_bND))


def centres(tube: Tube) -> np.ndarray:
    """float64 (n_t, n_h, n_w, 3): (t, h, w) of what the middle of every token of a frameset shows.

    In clip frames and canvas pixels, as `Tube.centres` has them: t is the middle of the one small frame that
    is seen there, and h, w the place in it, as if the frame were as large as the canvas.
    """
    rows, columns = tube.canvas.tiles
    height, width = tube.canvas.frame_size
    h, w = tube.centres[..., 1], tube.centres[..., 2]
    cell = h // height * columns + w // width
    first = np.asarray(tube.origins[0])[:, None, None] * rows * columns
    t = (first + cell + 0.5) * tube.canvas.step
    return np.stack([t, h % height * rows, w % width * columns], axis=-1)


def table(tube: Tube, dim: int) -> Tensor:
    """float32 (2, n_t * n_h * n_w, dim): positions of a frameset's tokens, and those of its mirror image.

    Flipped after cutting, the token at (t, h, n) shows what the one at (t, h, n_w - 1 - n) did: the small
    frames of a row stand in reverse order, and each is its own mirror image.
    """
    centres_THW3 = centres(tube)
    mirrored_THW3 = centres_THW3[:, :, ::-1] * (1, 1, -1) + (0, 0, tube.canvas.width_px)
    return torch.stack([sincos_3d(c.reshape(-1, 3), dim) for c in (centres_THW3, mirrored_THW3)])
