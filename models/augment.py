"""Changes to the tubes of a batch that make training see more than is stored.

A tube is a piece of a clip at a known place, so that flips, boxes and colours mean for tubes what they mean
for whole clips: a box covers the tokens whose middle lies in it. What is to be done is drawn for a whole
batch first, by `draw`, and depends on nothing but its generator; a rank takes its part of it.

B clips of a batch; tubes are uint8 (B, n_t, n_h, n_w, kT, kH, kW, 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from models.dualpath import centres as frameset_centres
from pipeline.plan import Plan, Tube

BLANK = 128  # what an erased pixel becomes: about the middle, as CLIP's normalisation has it
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Changes:
    """For each clip of a batch. Boxes are (t, h, w) from and to, in shares of the clip; some are empty.

    mirrored: bool (B,). colour: float64 (B, 3), factors of brightness, contrast and saturation.
    erased, exchanged: float64 (B, 2, 3) boxes: of what is blanked, and of what comes from the partner.
    blend: float64 (B,), the share of the clip's own pixels beside its partner's. partner: int64 (B,), the
    partner's number in the same batch.
    """

    mirrored: np.ndarray
    colour: np.ndarray
    erased: np.ndarray
    exchanged: np.ndarray
    blend: np.ndarray
    partner: np.ndarray

    def part(self, where: slice) -> Changes:
        """Those of some clips; partners must be among them."""
        found = {field.name: getattr(self, field.name)[where] for field in fields(self)}
        found["partner"] = found["partner"] - (where.start or 0)
        return Changes(**found)

    def partners(self) -> np.ndarray:
        """int64 (B,): the partner of each; itself where that is in another part of the batch."""
        own = np.arange(len(self.partner))
        return np.where((self.partner >= 0) & (self.partner < len(own)), self.partner, own)


def draw(
    count: int,
    rng: np.random.Generator,
    *,
    flip: float = 0.0,
    colour: tuple[float, float, float] = (0.0, 0.0, 0.0),
    erase: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Changes:
    """What to do to `count` clips; see `jobs.recipe.Augment`. Two that stand together are partners.

    colour: of brightness, contrast and saturation, by how much they may differ from 1.
    mixup: arXiv:1710.09412. cutmix: arXiv:1905.04899. erase: arXiv:1708.04896.
    """
    mirrored = rng.random(count) < flip
    factors = 1 + np.asarray(colour) * rng.uniform(-1, 1, (count, 3))
    erased = _boxes(rng, np.where(rng.random(count) < erase, rng.uniform(0.02, 1 / 3, count), 0.0))
    # Both of a pair get one share, so that each label is as strong as the other in the mean.
    pairs = np.arange(count) // 2
    boxed = (rng.random(count) < 0.5 if mixup and cutmix else np.full(count, cutmix > 0))[pairs]
    blend = rng.beta(mixup, mixup, count)[pairs] if mixup else np.ones(count)
    volume = rng.beta(cutmix, cutmix, count)[pairs] if cutmix else np.zeros(count)
    return Changes(
        mirrored, factors, erased, _boxes(rng, np.where(boxed, volume, 0.0)),
        np.where(boxed, 1.0, blend), np.arange(count) ^ 1,
    )  # fmt: skip


def apply(
    tubes: Mapping[str, Tensor], plan: Plan, changes: Changes
) -> tuple[dict[str, Tensor], Tensor | None, Tensor]:
    """Change a batch.

    Returns:
        the tubes; bool (B,), which are mirrored (None: none is); float32 (B,), how much of each clip is its
        own and not its partner's, which is what its label is worth.
    """
    device, partners = next(iter(tubes.values())).device, changes.partners()
    alone = partners == np.arange(len(partners))
    partner = torch.from_numpy(partners).to(device)
    blend = np.where(alone, 1.0, changes.blend)
    exchanged = np.where(alone[:, None, None], 0.0, _lasting(changes.exchanged, plan))
    erased = _lasting(changes.erased, plan)
    own = blend * (1 - np.prod(exchanged[:, 1] - exchanged[:, 0], axis=1))
    changed = dict(tubes)
    if (changes.colour != 1).any():
        changed = _coloured(changed, torch.from_numpy(changes.colour).float().to(device))
    mirrored = torch.from_numpy(changes.mirrored).to(device)
    for tube in plan.tubes:
        x = changed[tube.name]
        if changes.mirrored.any():
            x = torch.where(_each(mirrored, x), x.flip(3, 6), x)
        if (blend != 1).any():
            share = _each(torch.from_numpy(blend).float().to(device), x)
            x = (share * x.float() + (1 - share) * x[partner].float()).round_().to(torch.uint8)
        if exchanged.any():
            x = torch.where(_inside(tube, exchanged, device), x[partner], x)
        if erased.any():
            x = torch.where(_inside(tube, erased, device), torch.full_like(x, BLANK), x)
        changed[tube.name] = x
    shares = torch.from_numpy(own).float().to(device)
    return changed, mirrored if changes.mirrored.any() else None, shares


def _boxes(rng: np.random.Generator, volumes: np.ndarray) -> np.ndarray:
    """float64 (B, 2, 3): somewhere in the clip, of these shares of it, as long in each direction."""
    sides = np.cbrt(volumes)[:, None]
    corner = rng.random((len(volumes), 3)) * (1 - sides)
    return np.stack([corner, corner + sides], axis=1)


def _lasting(boxes: np.ndarray, plan: Plan) -> np.ndarray:
    """The boxes, but for as long as the clip where that is one frame."""
    if plan.clip_frames > 1:
        return boxes
    boxes = boxes.copy()
    boxes[:, 0, 0], boxes[:, 1, 0] = 0.0, (boxes[:, 1] > boxes[:, 0]).any(1)
    return boxes


def _inside(tube: Tube, boxes: np.ndarray, device: torch.device) -> Tensor:
    """bool (B, n_t, n_h, n_w, 1, 1, 1, 1): whether the middle of a token lies in its clip's box."""
    canvas = tube.canvas
    size = (canvas.frames * canvas.step, canvas.height_px, canvas.width_px)
    at = (tube.centres if canvas.tiles == (1, 1) else frameset_centres(tube)) / size
    low, high = (boxes[:, k, None, None, None] for k in (0, 1))
    inside = ((at >= low) & (at < high)).all(-1)
    return torch.from_numpy(inside).to(device)[(..., *(None,) * 4)]


def _coloured(tubes: Mapping[str, Tensor], factors_B3: Tensor) -> dict[str, Tensor]:
    """Brightness, then contrast about the clip's mean, then saturation about each pixel's grey."""
    grey = torch.tensor(GREY, device=factors_B3.device)
    brightness, contrast, saturation = factors_B3.unbind(1)
    bright = {name: _each(brightness, x) * x.float() for name, x in tubes.items()}
    pixels = sum(x[0].numel() for x in bright.values()) / 3
    mean_B = torch.stack([(x @ grey).flatten(1).sum(1) for x in bright.values()]).sum(0) / pixels
    changed = {}
    for name, x in bright.items():
        x = _each(mean_B, x).lerp(x, _each(contrast, x))
        x = (x @ grey)[..., None].lerp(x, _each(saturation, x))
        changed[name] = x.round_().clamp_(0, 255).to(torch.uint8)
    return changed


def _each(values_B: Tensor, x: Tensor) -> Tensor:
    """A value for each clip, so that it broadcasts over all that a tube tensor holds of it."""
    return values_B.view(-1, *(1,) * (x.ndim - 1))
