"""The tokenizer is a strided 3-D convolution of the normalised clip (B clips, T x H x W pixels, C = 3)."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import models
from models.tokenizer import (
    MEAN,
    STD,
    InterpolatedTokenizer,
    TubeTokenizer,
    from_conv3d,
    matching,
    resizing,
    to_conv3d,
)
from pipeline.plan import Canvas, Plan, Tube


def cut(clips_BTHWC: np.ndarray, plan: Plan) -> dict[str, torch.Tensor]:
    """Tubes by plain loops over `Tube.origins`, independent of the pipeline's cutter."""
    tubes = {}
    for tube in plan.tubes:
        k_t, k_h, k_w = tube.kernel
        out = np.zeros((len(clips_BTHWC), *tube.shape), np.uint8)
        for i, t in enumerate(tube.origins[0]):
            for j, h in enumerate(tube.origins[1]):
                for k, w in enumerate(tube.origins[2]):
                    out[:, i, j, k] = clips_BTHWC[:, t : t + k_t, h : h + k_h, w : w + k_w]
        tubes[tube.name] = torch.from_numpy(out)
    return tubes


def random_clips(batch: int, plan: Plan, seed: int = 0) -> np.ndarray:
    shape = (batch, *plan.tubes[0].canvas.shape, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def convolved(clips_BTHWC: np.ndarray, tube: Tube, tokenizer: TubeTokenizer) -> torch.Tensor:
    x = (torch.from_numpy(clips_BTHWC).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    t, h, w = tube.offset
    return torch.nn.functional.conv3d(
        x.permute(0, 4, 1, 2, 3)[:, :, t:, h:, w:],
        to_conv3d(tokenizer.weight[tube.name], tube.kernel),
        tokenizer.bias[tube.name],
        stride=tube.stride,
    )


def assert_is_convolution(plan: Plan, dim: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = TubeTokenizer(plan, dim)
        for bias in tokenizer.bias.values():
            torch.nn.init.normal_(bias)
    clips = random_clips(2, plan)
    with torch.no_grad():
        tokens_BND = tokenizer(cut(clips, plan))
        assert tokens_BND.shape == (2, plan.tokens, dim)
        for tube, tokens in zip(plan.tubes, tokens_BND.split([t.tokens for t in plan.tubes], 1), strict=True):
            expected = convolved(clips, tube, tokenizer)
            assert expected.shape[2:] == tube.grid
            assert (tokens - expected.flatten(2).transpose(1, 2)).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(64, 96), (100, 60)])
def test_equals_a_convolution_of_the_normalised_clip(size):
    assert_is_convolution(models.plan("tubevit-tiny", frames=32, size=size), dim=24)


@st.composite
def plans(draw):
    sizes = [draw(st.integers(1, n)) for n in (6, 20, 20)]
    canvas = Canvas(frames=sizes[0], height_px=sizes[1], width_px=sizes[2])
    tubes = []
    for index in range(draw(st.integers(1, 3))):
        kernel = tuple(draw(st.integers(1, min(size, 6))) for size in sizes)
        offset = tuple(draw(st.integers(0, size - k)) for size, k in zip(sizes, kernel, strict=True))
        stride = tuple(draw(st.integers(1, 8)) for _ in sizes)
        tubes.append(Tube(name=f"tube_{index}", kernel=kernel, stride=stride, offset=offset, canvas=canvas))
    return Plan(tubes=tuple(tubes))


@settings(max_examples=40, deadline=None)
@given(plans())
def test_equals_a_convolution_for_any_plan(plan):
    assert_is_convolution(plan, dim=5)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(st.integers(8, 12), st.integers(12, 20), st.integers(12, 20)),
)
def test_space_to_depth_is_a_block_diagonal_convolution(merge, step, size):
    kernel, parts = (2, 3, 2), merge[0] * merge[1] * merge[2]
    canvas = Canvas(frames=size[0], height_px=size[1], width_px=size[2])
    plan = Plan(tubes=(Tube(name="a", kernel=kernel, stride=step, canvas=canvas),))
    whole = tuple((k - 1) * s + n for k, s, n in zip(merge, step, kernel, strict=True))
    assume(all(n <= most for n, most in zip(whole, size, strict=True)))
    tokenizer = TubeTokenizer(plan, 2 * parts, merges={"a": merge})
    assert tokenizer.weight["a"].shape == (2, 36)
    torch.nn.init.normal_(tokenizer.bias["a"])
    # One large kernel over all that a token sees, its channels zero but where "their" place is.
    small = to_conv3d(tokenizer.weight["a"].detach(), kernel)
    large = torch.zeros(2 * parts, 3, *whole)
    places = [(t, h, w) for t in range(merge[0]) for h in range(merge[1]) for w in range(merge[2])]
    for i, place in enumerate(places):
        t, h, w = (slice(p * s, p * s + n) for p, s, n in zip(place, step, kernel, strict=True))
        large[2 * i : 2 * i + 2, :, t, h, w] = small
    clips = random_clips(2, plan)
    x = ((torch.from_numpy(clips).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(
        0, 4, 1, 2, 3
    )
    stride = tuple(k * s for k, s in zip(merge, step, strict=True))
    expected = torch.nn.functional.conv3d(x, large, tokenizer.bias["a"].repeat(parts), stride=stride)
    with torch.no_grad():
        tokens = tokenizer(cut(clips, plan))
    assert tokens.shape[1] == tokenizer.tokens
    assert (tokens - expected.flatten(2).transpose(1, 2)).abs().max() < 1e-4


def test_interpolated_kernels_agree_on_flat_pictures_and_all_of_the_source_learns():
    plan = models.plan("tubevit-b16", size=(64, 96))
    tokenizer = InterpolatedTokenizer(plan, 16)
    with torch.no_grad():  # interpolation keeps a constant kernel constant; a sum over others it nearly keeps
        tokenizer.weight["shared"].copy_(torch.randn(16, 1).expand(16, 8 * 8 * 8 * 3))
    flat = np.full((1, *plan.tubes[0].canvas.shape, 3), 200, np.uint8)
    tubes = cut(flat, plan)
    tokens = [tokenizer({name: tube})[0, 0] for name, tube in tubes.items()]
    for other in tokens[1:]:
        torch.testing.assert_close(other, tokens[0], atol=1e-2, rtol=1e-4)
    # The tube of one frame must teach every slice of the kernel, not just the middle two.
    noise = {"tube_1x16x16": cut(random_clips(1, plan), plan)["tube_1x16x16"]}
    tokenizer(noise).square().sum().backward()
    gradient = tokenizer.weight["shared"].grad
    assert gradient is not None
    assert (gradient.unflatten(1, (8, 8, 8, 3)).abs().sum((0, 2, 3, 4)) > 0).all()


def test_an_interpolated_kernel_of_the_sources_size_is_the_source():
    plan = models.plan("tubevit-b16", size=(64, 96))
    tokenizer = InterpolatedTokenizer(plan, 16)
    torch.testing.assert_close(tokenizer.kernel(plan.tubes[0]), tokenizer.weight["shared"])
    tube = plan.tubes[0].model_copy(update={"kernel": (4, 8, 8)})
    tokenizer.register_buffer("resize_4", resizing(8, 4))
    source = tokenizer.weight["shared"].unflatten(1, (8, 8, 8, 3))
    got = tokenizer.kernel(tube).unflatten(1, (4, 8, 8, 3))
    # Antialiased: each new frame is made of the frames within two of its middle, weighted by distance.
    weights = torch.tensor([0.0, 0.125, 0.375, 0.375, 0.125, 0, 0, 0])
    expected = 2 * torch.einsum("dthwc,t->dhwc", source, weights)
    torch.testing.assert_close(got[:, 1], expected, atol=1e-5, rtol=1e-4)


def test_conv3d_layout_round_trip():
    weight = torch.randn(7, 3, 2, 4, 5)
    assert torch.equal(to_conv3d(from_conv3d(weight), (2, 4, 5)), weight)
    # The last axis of ours is the channel, the one before it the column.
    assert from_conv3d(weight)[3, 1 * 3 + 2] == weight[3, 2, 0, 0, 1]


def test_token_spread_is_alike_for_all_tubes():
    plan = models.plan("tubevit-b16", size=(64, 96))
    tokenizer = models.create("tubevit-tiny", size=(64, 96)).get_submodule("trunk.tokenizer")
    # Flat tubes, as video mostly is, and noise: both must give every tube the same order of magnitude.
    noise = random_clips(1, plan)
    flat = np.broadcast_to(noise[:, :1, :1, :1], noise.shape)
    for clips in (noise, flat):
        tubes = cut(clips, plan)
        for name, tube in tubes.items():
            assert 0.3 < tokenizer({name: tube}).std() < 3


def test_bfloat16_autocast_is_close():
    plan = models.plan("tubevit-b16", size=(64, 96))
    tokenizer = TubeTokenizer(plan, 32)
    tubes = cut(random_clips(1, plan), plan)
    with torch.no_grad():
        exact = tokenizer(tubes)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = tokenizer(tubes)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.std()


def test_gradients_reach_weights_and_biases():
    plan = models.plan("tubevit-b16", size=(32, 48))
    tokenizer = TubeTokenizer(plan, 8)
    tokenizer(cut(random_clips(1, plan), plan)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())


def test_wrong_tubes_are_named():
    plan = models.plan("clip", size=(32, 48))
    tubes = cut(random_clips(1, plan), plan)
    with pytest.raises(ValueError, match=r"tube_1x16x16.*wants.*\(8, 2, 3, 1, 16, 16, 3\)"):
        matching({name: x[:, :, :1] for name, x in tubes.items()}, [plan])
    with pytest.raises(ValueError, match="must be uint8"):
        matching({name: x.float() for name, x in tubes.items()}, [plan])
