"""Plan arithmetic: golden counts, and properties over random plans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from samples import plans, tubes

import models
from pipeline.plan import Canvas, Plan, Tube


def places(tube: Tube) -> set[tuple[int, int, int]]:
    """Every origin by counting up, independently of Tube.origins."""
    axes = []
    for size, kernel, stride, offset in zip(
        tube.canvas.shape, tube.kernel, tube.stride, tube.offset, strict=True
    ):
        at, stops = offset, []
        while at + kernel <= size:
            stops.append(at)
            at += stride
        axes.append(stops)
    return {(t, h, w) for t in axes[0] for h in axes[1] for w in axes[2]}


@pytest.mark.parametrize(("frames", "tokens"), [(32, 539), (64, 1176), (128, 2499)])
def test_tubevit_token_counts(frames: int, tokens: int) -> None:
    assert models.plan("tubevit-b16", frames=frames).tokens == tokens


def test_tubevit_standard_tubes() -> None:
    plan = models.plan("tubevit-b16")
    assert [tube.tokens for tube in plan.tubes] == [98, 147, 98, 196]
    assert plan.bytes_per_clip == 583_296


def test_beside_clip_the_shared_patches_are_stored_once() -> None:
    plan = models.plan("gated-b16")
    assert plan.bytes_per_clip == 1_636_992
    assert plan.contains(models.plan("tubevit-b16"))
    assert plan.contains(models.plan("clip"))


def test_image_plan_is_the_flat_tube_alone() -> None:
    image = models.plan("tubevit-b16").image()
    assert image is not None
    assert image.tokens == 196
    assert image.clip_frames == 1


def test_a_plan_without_flat_tubes_takes_no_images() -> None:
    canvas = Canvas(frames=4, height_px=8, width_px=8)
    assert Plan(tubes=(Tube(name="a", kernel=(2, 4, 4), stride=(2, 4, 4), canvas=canvas),)).image() is None


@given(tubes())
def test_origins_are_all_places_where_the_kernel_fits(tube: Tube) -> None:
    t, h, w = tube.origins
    assert {(i, j, k) for i in t for j in h for k in w} == places(tube)
    assert tube.tokens == len(places(tube)) > 0
    assert tube.bytes_per_clip == int(np.prod(tube.shape))


@given(tubes())
def test_centres_lie_in_the_middle_of_tubes(tube: Tube) -> None:
    frames_of_an_image = tube.canvas.step * tube.canvas.tiles[0] * tube.canvas.tiles[1]
    centres = tube.centres.reshape(-1, 3)
    expected = sorted(
        ((t + tube.kernel[0] / 2) * frames_of_an_image, h + tube.kernel[1] / 2, w + tube.kernel[2] / 2)
        for t, h, w in places(tube)
    )
    assert sorted(map(tuple, centres.tolist())) == expected


@given(plans())
def test_json_round_trip_keeps_the_digest(plan: Plan) -> None:
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again == plan
    assert again.digest == plan.digest


@given(plans(), plans())
def test_union_contains_both_and_no_tube_twice(a: Plan, b: Plan) -> None:
    both = a.union(b)
    assert both.contains(a)
    assert both.contains(b)
    assert both.bytes_per_clip <= a.bytes_per_clip + b.bytes_per_clip
    assert a.union(a).bytes_per_clip <= a.bytes_per_clip


@given(plans(), plans(), st.integers(1, 3))
def test_take_gives_exactly_the_places_of_the_wanted_plan(a: Plan, b: Plan, batch: int) -> None:
    both = a.union(b)
    # Instead of pixels, every place holds its own origin.
    held = {tube.name: np.broadcast_to(_origins(tube), (batch, *tube.grid, 3)) for tube in both.tubes}
    for plan in (a, b):
        taken = both.take(held, plan)
        for tube in plan.tubes:
            np.testing.assert_array_equal(taken[tube.name][0], _origins(tube))


@given(plans(), plans())
def test_contains_is_about_places_not_names(a: Plan, b: Plan) -> None:
    by_places = all(
        any(
            tube.canvas == held.canvas and tube.kernel == held.kernel and places(tube) <= places(held)
            for held in b.tubes
        )
        for tube in a.tubes
    )
    assert b.contains(a) == by_places


@given(plans())
def test_frames_of_are_those_that_tubes_touch(plan: Plan) -> None:
    for canvas in plan.canvases:
        per_image = canvas.tiles[0] * canvas.tiles[1]
        touched = {
            image * per_image + k
            for tube in plan.tubes
            for t, _, _ in places(tube)
            for image in range(t, t + tube.kernel[0])
            for k in range(per_image)
        }
        assert plan.frames_of(canvas) == [frame * canvas.step for frame in sorted(touched)]
        assert max(plan.frames_of(canvas)) < plan.clip_frames


def test_a_tube_that_does_not_fit_is_refused_with_its_name() -> None:
    canvas = Canvas(frames=16, height_px=32, width_px=32)
    with pytest.raises(
        ValidationError, match="'long' does not fit: axis T of its canvas is 16, but .* needs 20"
    ):
        Tube(name="long", kernel=(16, 4, 4), stride=(6, 32, 32), offset=(4, 8, 8), canvas=canvas)


@pytest.mark.parametrize("change", [{"kernel": [1, 2]}, {"kernel": ["1", 2, 2]}, {"kernle": [1, 2, 2]}])
def test_plans_are_strict(change: dict) -> None:
    canvas = Canvas(frames=1, height_px=4, width_px=4)
    tube = Tube(name="a", kernel=(1, 2, 2), stride=(1, 2, 2), canvas=canvas).model_dump(mode="json")
    with pytest.raises(ValidationError):
        Tube.model_validate(tube | change)


def _origins(tube: Tube) -> np.ndarray:
    return np.stack(np.meshgrid(*tube.origins, indexing="ij"), axis=-1)
