"""Fixed 3-D sine-cosine positions at tube centres (TubeViT, arXiv:2212.03229, section 3.2, Eq 3-7).

N tokens, D channels, J = D // 6 frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pipeline.plan import Plan, Sizes

TAU = 10_000.0


def sincos_3d(centres_N3: np.ndarray, dim: int, *, literal: bool = False) -> torch.Tensor:
    """float32 (N, dim): the positions of N centres (t, h, w), in frames and pixels.

    Channels 6j..6j+5 are [sin t*w_j, cos t*w_j, sin x*w_j, cos x*w_j, sin y*w_j, cos y*w_j]. The paper's x
    runs across the frame (our w), its y down the frame (our h). The paper prints w_j = 1/tau^j, which
    leaves all but a few channels constant, and is to be had as `literal`; meant is tau^(-j/J), as in the
    transformer it cites. If dim is no multiple of 6, the last channels are zero.
    """
    frequencies = dim // 6
    exponents_J = np.arange(frequencies) / (1 if literal else frequencies)
    omega_J = TAU**-exponents_J
    angles_N3J = centres_N3[:, [0, 2, 1], None] * omega_J
    waves_NJ32 = np.stack([np.sin(angles_N3J), np.cos(angles_N3J)], axis=-1).transpose(0, 2, 1, 3)
    table_ND = np.zeros((len(centres_N3), dim), dtype=np.float32)
    table_ND[:, : 6 * frequencies] = waves_NJ32.reshape(len(centres_N3), -1)
    return torch.as_tensor(table_ND)


def centres(plan: Plan, merges: Mapping[str, Sizes] | None = None, *, mirrored: bool = False) -> np.ndarray:
    """float64 (N, 3): (t, h, w) of every token of a plan, tubes in its order, w fastest.

    merges: which neighbouring places a token joins (see `models.tokenizer`); its centre is their mean.
    mirrored: for clips flipped after cutting: each tube tensor reversed along its n_w and kW axes. The
        place at (t, h, n) then shows what the one at (t, h, n_w - 1 - n) saw, at W minus that one's centre:
        off the grid unless the grid is symmetric on its canvas.
    """
    parts = []
    for tube in plan.tubes:
        centres_THW3 = tube.centres
        if mirrored:
            centres_THW3 = centres_THW3[:, :, ::-1] * (1, 1, -1) + (0, 0, tube.canvas.width_px)
        k_t, k_h, k_w = (merges or {}).get(tube.name, (1, 1, 1))
        n_t, n_h, n_w = (n // k for n, k in zip(tube.grid, (k_t, k_h, k_w), strict=True))
        whole = centres_THW3[: n_t * k_t, : n_h * k_h, : n_w * k_w]
        joined = whole.reshape(n_t, k_t, n_h, k_h, n_w, k_w, 3).mean(axis=(1, 3, 5))
        parts.append(joined.reshape(-1, 3))
    return np.concatenate(parts)


def table(
    plan: Plan, dim: int, merges: Mapping[str, Sizes] | None = None, *, literal: bool = False
) -> torch.Tensor:
    """float32 (2, N, dim): the positions of a plan's tokens, and those of its mirror image."""
    return torch.stack(
        [sincos_3d(centres(plan, merges, mirrored=flip), dim, literal=literal) for flip in (False, True)]
    )
