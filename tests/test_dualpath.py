"""DualPath: framesets from the file to their positions, two paths through one frozen tower."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from samples import dense
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import dualpath, plans
from models.dualpath import DualPath, Parallel, Serial
from models.positions import sincos_3d
from models.towers import tower
from models.transformer import Block
from pipeline.cut import cut
from pipeline.plan import Canvas
from pipeline.sampling import Sampling
from pipeline.storage import locate
from pipeline.video import Pixels, read_clips


def pictures(tubes: np.ndarray) -> np.ndarray:
    """(F, n_h, n_w, 1, p, p, 3) of patches side by side -> (F, H, W, 3)."""
    f, rows, columns, _, height, width, _ = tubes.shape
    return tubes.transpose(0, 3, 1, 4, 2, 5, 6).reshape(f, rows * height, columns * width, 3)


def cells(images: np.ndarray) -> np.ndarray:
    """Framesets (F, H, W, 3) -> their small frames in reading order, (16 F, H/4, W/4, 3)."""
    f, height, width, _ = images.shape
    grid = images.reshape(f, 4, height // 4, 4, width // 4, 3)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height // 4, width // 4, 3)


def test_framesets_of_constant_frames():
    plan = plans.dualpath(plans.canvas(32, (224, 224), "area"), 16)
    colours = np.arange(32, dtype=np.uint8) * 8
    frames = {
        c: np.zeros((c.frames, *c.frame_size, 3), np.uint8) + colours[:, None, None, None]
        for c in plan.canvases
    }
    framesets = pictures(cut(frames, plan)["grid_1x16x16"])
    assert framesets.shape == (2, 224, 224, 3)
    middles = framesets[:, 28::56, 28::56, 0]
    np.testing.assert_array_equal(middles.reshape(-1), colours)
    # Frames are shrunk one by one, so that no colour bleeds into a neighbour.
    np.testing.assert_array_equal(
        cells(framesets), np.broadcast_to(colours[:, None, None, None], (32, 56, 56, 3))
    )


def test_a_file_becomes_key_frames_and_framesets(clips: Path):
    plan = plans.dualpath(plans.canvas(16, (64, 96), "area"), 16)
    whole = dense(Canvas(frames=16, height_px=96, width_px=128), (1, 96, 128))
    view, full = (
        next(
            read_clips(locate(str(clips / "h264_bframes.mp4")), Sampling(frames=16, stride=3, **size), wanted)
        )
        for size, wanted in (
            ({"height_px": 64, "width_px": 96}, plan),
            ({"height_px": 96, "width_px": 128}, whole),
        )
    )
    assert isinstance(view, Pixels)
    assert isinstance(full, Pixels)
    tubes = cut(view.frames, plan)
    key_frames, small = pictures(tubes["tube_1x16x16"]), cells(pictures(tubes["grid_1x16x16"]))
    assert (key_frames.shape, small.shape) == ((8, 64, 96, 3), (16, 16, 24, 3))
    numbers = view.clip.frames.tolist()
    assert len(set(numbers)) == 16
    assert [stamp(picture) for picture in small] == numbers
    assert [stamp(picture) for picture in key_frames] == numbers[::2]
    # Each small pixel is the mean over its area of the frame, cropped to 2:3 (colour is coarser than light).
    top, left, height, width = view.crop
    box = light(full.frames[whole.canvases[0]][:, top : top + height, left : left + width])
    apart = np.abs(light(small) - shares(height, 16) @ box @ shares(width, 24).T)
    assert apart.mean() < 0.5
    assert apart.max() < 20
    model = DualPath(plan, tiny.tower()).eval()
    with torch.no_grad():
        z = model.embed({name: torch.from_numpy(x)[None] for name, x in tubes.items()})
    assert z.shape == (1, 48)
    assert z.isfinite().all()


def stamp(picture: np.ndarray) -> int:
    """The number drawn into a picture by make_clips.stamped, at any size whose bars are whole pixels."""
    height, width, _ = picture.shape
    bars = picture[height // 4 : height // 2].mean((0, 2)).reshape(8, width // 8)[:, 1:-1].mean(1) > 127
    return int(np.packbits(bars)[0])


def light(pictures: np.ndarray) -> np.ndarray:
    return pictures @ np.array([0.299, 0.587, 0.114])


def shares(many: int, few: int) -> np.ndarray:
    """(few, many): which share each of `many` pixels has in the mean that is one of `few` pixels."""
    edges, starts = np.linspace(0, many, few + 1), np.arange(many)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return overlap.clip(0) * few / many


# Positions


SIZES = [(16, 224, 224), (32, 64, 96), (32, 40, 104)]  # cells of 56x56, 16x24 and 10x26 under 16x16 patches


@pytest.mark.parametrize(("frames", "height", "width"), SIZES)
def test_positions_are_where_and_when_the_pixels_were(frames: int, height: int, width: int):
    """Every pixel tells its frame and its place there, so that a token's middle can be read from it."""
    model = tiny.dualpath(frames, (height, width))
    tall, wide = height // 4, width // 4
    t, h, w = np.meshgrid(np.arange(frames), np.arange(tall), np.arange(wide), indexing="ij")
    small = np.stack([t, h, w], axis=-1).astype(np.uint8)
    canvases = model.plan.canvases
    blank = np.zeros((frames, height, width, 3), np.uint8)
    tubes = cut({canvases[0]: blank, canvases[1]: small}, model.plan)["grid_1x16x16"]
    t, h, w = np.moveaxis(tubes[:, :, :, 0, 8, 8].reshape(-1, 3).astype(float), -1, 0)
    expected = np.stack([t + 0.5, h * 4, w * 4], axis=-1)
    torch.testing.assert_close(model.positions[0], sincos_3d(expected, 32))
    # Flipped, the pixel right of the middle is left of it, as far from the right as it was from the left.
    flipped = tubes[:, :, ::-1, :, :, ::-1]
    t, h, w = np.moveaxis(flipped[:, :, :, 0, 8, 7].reshape(-1, 3).astype(float), -1, 0)
    expected = np.stack([t + 0.5, h * 4, width - w * 4], axis=-1)
    torch.testing.assert_close(model.positions[1], sincos_3d(expected, 32))


def test_times_of_a_frameset_by_hand():
    """14x14 tokens on 4x4 cells of 56 px: 3.5 tokens a cell; the fourth's middle is the next cell's edge."""
    tube = plans.dualpath(plans.canvas(32, (224, 224), "area"), 16).tubes[1]
    t = dualpath.centres(tube)[..., 0]
    row = [0.5] * 3 + [1.5] * 4 + [2.5] * 3 + [3.5] * 4
    assert t[0, 0].tolist() == row
    assert (t[0, :, 0] - 0.5).tolist() == [0] * 3 + [4] * 4 + [8] * 3 + [12] * 4
    assert t[1, 13].tolist() == [28 + time for time in row]
    large = dualpath.centres(plans.dualpath(plans.canvas(16, (224, 224), "area"), 14).tubes[1])
    assert set(Counter(large[..., 0].ravel().tolist()).values()) == {16}  # 4x4 whole tokens a frame


def test_clips_flipped_after_cutting_equal_those_cut_from_flipped_frames():
    """Cells of two patches each, so that flipping moves whole tokens."""
    model = tiny.dualpath(32, (64, 128))
    tiny.wake(model)
    rng = np.random.default_rng(0)
    frames = {c: rng.integers(0, 256, (c.frames, *c.frame_size, 3), np.uint8) for c in model.plan.canvases}
    flipped = {canvas: np.ascontiguousarray(x[:, :, ::-1]) for canvas, x in frames.items()}
    tubes, expected = (
        {name: torch.from_numpy(x)[None] for name, x in cut(f, model.plan).items()} for f in (frames, flipped)
    )
    turned = {name: torch.cat([x, x.flip(3, 6)]) for name, x in tubes.items()}
    with torch.no_grad():
        z = model.embed(turned, torch.tensor([False, True]))
        torch.testing.assert_close(z[0], model.embed(tubes)[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(z[1], model.embed(expected)[0], atol=1e-5, rtol=1e-5)
        assert (model.embed(turned)[1] - z[1])[:24].abs().max() > 1e-4


def test_the_order_of_framesets_and_of_frames_in_them_matters():
    model = tiny.dualpath(32)
    tiny.wake(model)
    tubes = tiny.random_tubes(model.plan)
    with torch.no_grad():
        z = model.embed(tubes)
        for axis in (1, 2, 3):
            moved = tubes | {"grid_1x16x16": tubes["grid_1x16x16"].flip(axis)}
            change = (model.embed(moved) - z).abs()
            assert change[:, :24].max() > 1e-4
            assert change[:, 24:].max() == 0


# At first


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_the_spatial_path_starts_as_clip_bit_for_bit(variant: str):
    model = tiny.dualpath(**tiny.VARIANTS[variant])
    tubes = tiny.random_tubes(model.plan)
    with torch.no_grad():
        expected = model.clip.embed({"tube_1x16x16": tubes["tube_1x16x16"]})
        assert torch.equal(model.embed(tubes)[:, 24:], expected)
        tiny.wake(model)
        assert (model.embed(tubes)[:, 24:] - expected).abs().max() > 1e-3


def test_the_temporal_path_starts_blind_to_the_video():
    model = tiny.dualpath(32)
    clip = model.clip
    with torch.no_grad():
        z = model.embed(tiny.random_tubes(model.plan))[:, :24]
        other = model.embed(tiny.random_tubes(model.plan, seed=1))[:, :24]
        token = clip.norm_pre(clip.class_embedding)[None, None]  # its position is 0
        expected = clip.leave(token, 1)[:, 0].expand(2, -1)
        assert torch.equal(z, other)
        torch.testing.assert_close(z, expected)
        tiny.wake(model)
        z = model.embed(tiny.random_tubes(model.plan))[:, :24]
        assert (z - expected).abs().max() > 1e-3
        assert (z[0] - z[1]).abs().max() > 1e-5


def test_both_blocks_written_out():
    torch.manual_seed(0)
    block, x = Block(32, 2, 64, layer_scale=0.5), torch.randn(3, 5, 32)
    parallel, serial = Parallel(32, 8).eval(), Serial(32, 8).eval()
    tiny.wake(parallel)
    tiny.wake(serial)
    y = x + 0.5 * block.attention(block.norm1(x)) + parallel.attention(block.norm1(x))
    y = y + 0.5 * block.mlp(block.norm2(y)) + parallel.mlp(block.norm2(y))
    torch.testing.assert_close(parallel(x, block), y)
    y = x + serial.attention(0.5 * block.attention(block.norm1(x)))
    y = y + serial.mlp(0.5 * block.mlp(block.norm2(y)))
    torch.testing.assert_close(serial(x, block), y)
    assert all(m.dropout.p == 0.1 for m in (parallel.attention, parallel.mlp, serial.attention, serial.mlp))


# Sizes


GOLDEN = [
    ("ViT-B-16", 16, 1773, 166, 10_210_192),
    ("ViT-B-16", 32, 1970, 185, 10_210_192),
    ("ViT-B-16", 48, 2167, 203, 10_210_192),
    ("ViT-L-14", 16, 9 * 257, 758, 26_764_432),
    ("ViT-L-14", 32, 10 * 257, 843, 26_764_432),
    ("ViT-L-14", 48, 11 * 257, 927, 26_764_432),
]


@pytest.mark.parametrize(("arch", "frames", "tokens", "gmacs", "count"), GOLDEN)
def test_golden_sizes(arch: str, frames: int, tokens: int, gmacs: int, count: int):
    plan = plans.dualpath(plans.canvas(frames, (224, 224), "area"), tower(arch).patch)
    entered = []
    with torch.device("meta"):
        model = DualPath(plan, tower(arch), num_classes=400).eval()
        model.clip.norm_pre.register_forward_hook(
            lambda module, inputs, x: entered.append(x.shape[:2].numel())
        )
        tubes = {tube.name: torch.empty(1, *tube.shape, dtype=torch.uint8) for tube in plan.tubes}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            assert model(tubes).shape == (1, 400)
    assert sum(entered) == tokens
    # Without a class token for each image.
    assert model.tokens == tokens - 8 - frames // 16
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    embedding = tower(arch).embed_dim
    readout = embedding * (2 * embedding + 1) + 400 * (embedding + 1)
    assert count == 4 * tower(arch).layers * (257 * tower(arch).width + 128) + readout


def test_the_tower_is_stored_once():
    with torch.device("meta"):
        model = DualPath(plans.dualpath(plans.canvas(16, (224, 224), "area"), 16), tower("ViT-B-16"))
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == 86_192_640
    assert not any("positions" in name for name in model.state_dict())


# What learns


def test_at_first_every_adapter_that_the_class_token_sees_can_move():
    """Also the temporal ones, behind branches that are 0: attention sees the video from the first step on."""
    model = tiny.dualpath(num_classes=5)
    model(tiny.random_tubes(model.plan)).square().sum().backward()
    for path in (model.spatial, model.temporal):
        for layer in path:
            assert isinstance(layer, Parallel | Serial)
            for adapter in (layer.attention, layer.mlp):
                assert adapter.up.weight.grad is not None
                assert adapter.up.weight.grad.any()


def test_no_graph_is_built_before_the_first_adapter():
    model = tiny.dualpath()
    seen: dict[str, list[bool]] = {}
    for layer in (0, 1):
        for part in ("norm1", "attention", "norm2"):
            name = f"{part} of {layer}"
            model.clip.blocks[layer].get_submodule(part).register_forward_hook(
                lambda module, inputs, x, name=name: seen.setdefault(name, []).append(x.requires_grad)
            )
    model.embed(tiny.random_tubes(model.plan))
    assert seen.pop("norm1 of 0") == seen.pop("attention of 0") == [False, False]  # one for each path
    assert set(map(tuple, seen.values())) == {(True, True)}


def test_a_two_layer_readout_is_a_head():
    model = tiny.dualpath(num_classes=5)
    assert model.head is not None
    assert {name.split(".")[0] for name in model.state_dict()} == {"clip", "spatial", "temporal", "head"}
    tubes = tiny.random_tubes(model.plan)
    with torch.no_grad():
        z = model.embed(tubes)
        assert (z.shape, z.dtype, model.dim) == ((2, 48), torch.float32, 48)
        hidden = nn.functional.gelu(nn.functional.linear(z, *model.head.get_submodule("0").parameters()))
        expected = nn.functional.linear(hidden, *model.head.get_submodule("2").parameters())
        torch.testing.assert_close(model(tubes), expected)
    with pytest.raises(ValueError, match=r"model\.num_classes = None"):
        tiny.dualpath()(tubes)


# In use


def test_an_image_and_other_tubes_are_refused():
    model = tiny.dualpath()
    assert model.image_plan is None
    tubes = tiny.random_tubes(model.plan)
    with pytest.raises(ValueError, match="tubes have shapes"):
        model.embed({"tube_1x16x16": tubes["tube_1x16x16"]})


def test_framesets_of_a_clip_do_not_meet():
    """The mean over two framesets is a sum of what each gives alone."""
    model = tiny.dualpath(32)
    tiny.wake(model)
    tubes = tiny.random_tubes(model.plan, batch=4)
    framesets = tubes["grid_1x16x16"]
    framesets[2] = torch.stack([framesets[0, 0], framesets[1, 1]])
    framesets[3] = torch.stack([framesets[1, 0], framesets[0, 1]])
    with torch.no_grad():
        z = model.embed(tubes)[:, :24]
    assert (z[0] - z[2]).abs().max() > 1e-4
    torch.testing.assert_close(z[0] + z[1], z[2] + z[3], atol=1e-5, rtol=1e-5)
