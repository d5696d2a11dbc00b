"""Frames, as our CLIP towers take them and as open_clip's do. B clips, F frames, H x W pixels."""

import numpy as np
import open_clip
import torch
from torch import Tensor

from models import plans
from pipeline.plan import Plan

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def clip_plan(frames: int, size: tuple[int, int], patch: int, every: int) -> Plan:
    return plans.clip(plans.canvas(frames, size, "area"), patch, every)


def random_frames(batch: int, frames: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, frames, *size, 3), dtype=np.uint8)


def patches(frames_BFHWC: np.ndarray, plan: Plan) -> dict[str, Tensor]:
    """The one tube of a CLIP plan, by a reshape: patches lie side by side."""
    (tube,) = plan.tubes
    _, p, _ = tube.kernel
    n_t, rows, columns = tube.grid
    kept = frames_BFHWC[:, tube.origins[0], : rows * p, : columns * p]
    grid = kept.reshape(len(kept), n_t, rows, p, columns, p, 3).transpose(0, 1, 2, 4, 3, 5, 6)
    return {tube.name: torch.from_numpy(np.ascontiguousarray(grid[:, :, :, :, None]))}


def normalised(frames_BFHWC: np.ndarray, mean=MEAN, std=STD) -> Tensor:
    x = (torch.from_numpy(frames_BFHWC).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    return x.permute(0, 1, 4, 2, 3).flatten(0, 1)
