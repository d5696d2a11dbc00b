"""The tokenizer is a strided 3-D convolution of the normalised clip (B clips, T x H x W pixels, C = 3)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.tokenizer import MEAN, STD, TubeTokenizer, from_conv3d, matching, to_conv3d
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
