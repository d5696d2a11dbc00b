"""What is changed in tubes is what the same change would be in the clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import augment, plans
from models.config import TubeConfig
from pipeline.cut import cut
from pipeline.plan import Plan

CANVAS = plans.canvas(4, (16, 24), "area")
# All of a clip, so that every change of it can be cut as well.
WHOLE = (TubeConfig(kernel=(2, 4, 4), stride=(2, 4, 4)), TubeConfig(kernel=(1, 8, 8), stride=(1, 8, 8)))
PLAN = plans.tubes(CANVAS, WHOLE)


def clips(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 16, 24, 3), dtype=np.uint8)


def tubes_of(frames_BTHWC: np.ndarray, plan: Plan = PLAN) -> dict[str, torch.Tensor]:
    found = {t.name: np.empty((len(frames_BTHWC), *t.shape), np.uint8) for t in plan.tubes}
    for row, frames in enumerate(frames_BTHWC):
        cut({CANVAS: frames}, plan, {name: x[row] for name, x in found.items()})
    return {name: torch.from_numpy(x) for name, x in found.items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float = 0) -> None:
    for name, x in ours.items():
        assert x.dtype == torch.uint8
        torch.testing.assert_close(x.int(), theirs[name].int(), rtol=0, atol=atol)


def test_nothing_is_changed_unless_it_is_asked_for() -> None:
    before = tubes_of(clips(6))
    after, mirrored, shares = augment.apply(before, PLAN, augment.draw(6, np.random.default_rng(0)))
    assert_same(after, before)
    assert mirrored is None
    assert (shares == 1).all()


def test_mirrored_tubes_are_the_mirrored_clip_in_reverse_order() -> None:
    frames = clips(8)
    after, mirrored, _ = augment.apply(
        tubes_of(frames), PLAN, augment.draw(8, np.random.default_rng(0), flip=0.5)
    )
    assert mirrored is not None
    assert 0 < mirrored.sum() < 8
    for clip, name in ((clip, name) for clip in range(8) for name in after):
        expected = tubes_of(frames[clip : clip + 1])[name][0]
        if mirrored[clip]:
            flipped = np.ascontiguousarray(frames[clip : clip + 1, :, :, ::-1])
            expected = tubes_of(flipped)[name][0]  # these tubes tile the clip: cut anew they are the same
        assert torch.equal(after[name][clip], expected)


def test_mixed_clips_are_their_weighted_mean() -> None:
    frames = clips(6)
    changes = augment.draw(6, np.random.default_rng(3), mixup=0.8)
    after, _, shares = augment.apply(tubes_of(frames), PLAN, changes)
    assert (shares[0::2] == shares[1::2]).all()
    assert shares.unique().numel() == 3
    share = shares.double().numpy().reshape(-1, 1, 1, 1, 1)
    partners = frames[[1, 0, 3, 2, 5, 4]]
    assert_same(after, tubes_of((share * frames + (1 - share) * partners).round().astype(np.uint8)), atol=1)


@pytest.mark.parametrize("kind", ["cutmix", "erase"])
def test_a_box_covers_the_tokens_whose_middle_lies_in_it(kind: str) -> None:
    frames = clips(6)
    changes = augment.draw(
        6, np.random.default_rng(2), cutmix=float(kind == "cutmix"), erase=float(kind == "erase")
    )
    after, _, shares = augment.apply(tubes_of(frames), PLAN, changes)
    boxes = changes.exchanged if kind == "cutmix" else changes.erased
    volumes = np.prod(boxes[:, 1] - boxes[:, 0], axis=1)
    assert ((boxes >= 0) & (boxes <= 1)).all()
    other = tubes_of(frames[[1, 0, 3, 2, 5, 4]] if kind == "cutmix" else np.full_like(frames, 128))
    own = tubes_of(frames)
    for tube in PLAN.tubes:
        for clip, place in ((c, p) for c in range(6) for p in np.ndindex(tube.grid)):
            middle = tube.centres[place] / (4, 16, 24)
            inside = ((middle >= boxes[clip, 0]) & (middle < boxes[clip, 1])).all()
            expected = (other if inside else own)[tube.name][(clip, *place)]
            assert torch.equal(after[tube.name][(clip, *place)], expected)
    torch.testing.assert_close(
        shares, torch.from_numpy(1 - volumes if kind == "cutmix" else np.ones(6)).float()
    )


def test_colours() -> None:
    frames = clips(4) // 4 + 96  # far from black and white
    rng = np.random.default_rng(0)
    changes = augment.draw(4, rng, colour=(0.2, 0.5, 0.9))
    after, _, _ = augment.apply(tubes_of(frames), PLAN, changes)
    assert ((changes.colour - 1).__abs__() <= (0.2, 0.5, 0.9)).all()
    brightness, contrast, saturation = (changes.colour[:, k].reshape(-1, 1, 1, 1, 1) for k in range(3))
    x = frames * brightness
    mean = (x @ augment.GREY).mean((1, 2, 3)).reshape(-1, 1, 1, 1, 1)
    x = mean + contrast * (x - mean)
    grey = (x @ augment.GREY)[..., None]
    expected = (grey + saturation * (x - grey)).round().clip(0, 255).astype(np.uint8)
    assert_same(after, tubes_of(expected), atol=1)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.sampled_from([2, 4, 6, 12]))
def test_parts_of_a_batch_change_as_the_whole_does(seed: int, size: int) -> None:
    """Whoever takes which part of a batch: pairs are never torn."""
    before = tubes_of(clips(12, seed))
    changes = augment.draw(
        12, np.random.default_rng(seed),
        flip=0.5, colour=(0.4, 0.4, 0.4), erase=0.5, mixup=0.8, cutmix=1.0,
    )  # fmt: skip
    whole, _, shares = augment.apply(before, PLAN, changes)
    for start in range(0, 12, size):
        part = slice(start, start + size)
        some = {name: x[part] for name, x in before.items()}
        after, _, own = augment.apply(some, PLAN, changes.part(part))
        assert_same(after, {name: x[part] for name, x in whole.items()})
        assert torch.equal(own, shares[part])


def test_a_clip_whose_partner_is_elsewhere_stays_by_itself() -> None:
    changes = augment.draw(3, np.random.default_rng(0), mixup=1.0)
    before = tubes_of(clips(3))
    after, _, shares = augment.apply(before, PLAN, changes)
    assert changes.partners().tolist() == [1, 0, 2]
    assert shares[2] == 1
    assert torch.equal(after["tube_2x4x4"][2], before["tube_2x4x4"][2])


def test_a_box_on_an_image_is_as_much_of_it_as_its_label_says() -> None:
    plan = PLAN.image()
    assert plan is not None
    fine = Plan(
        tubes=tuple(t.model_copy(update={"kernel": (1, 1, 1), "stride": (1, 1, 1)}) for t in plan.tubes[:1])
    )
    zeros = {fine.tubes[0].name: torch.zeros(64, *fine.tubes[0].shape, dtype=torch.uint8)}
    for x in zeros.values():
        x[1::2] = 1
    changes = augment.draw(64, np.random.default_rng(0), cutmix=1.0)
    after, _, shares = augment.apply(zeros, fine, changes)
    for x in after.values():
        other = x.float().mean((1, 2, 3, 4, 5, 6, 7))
        other[1::2] = 1 - other[1::2]
        torch.testing.assert_close(other, 1 - shares, rtol=0, atol=0.1)  # a pixel or so at each side
        assert abs(float((other - (1 - shares)).mean())) < 0.02
