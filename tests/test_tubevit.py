"""TubeViT: golden sizes, pooling, images, positions in use."""

import pytest
import torch

import models
from models.tubevit import AttentionPool, TubeTrunk, TubeViT
from pipeline.plan import Canvas, Plan, Tube

SMALL = {"frames": 20, "size": (64, 96)}


def random_tubes(plan: Plan, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        tube.name: torch.randint(0, 256, (batch, *tube.shape), dtype=torch.uint8, generator=generator)
        for tube in plan.tubes
    }


def test_golden_parameter_counts():
    with torch.device("meta"):
        model = TubeViT(TubeTrunk(models.plan("tubevit-b16"), 768, 12, 12), num_classes=400)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_modules()}
    assert count["trunk.encoder"] == 85_056_000
    assert count["trunk.tokenizer.weight"] == 3_686_400
    assert count["trunk.tokenizer.bias"] == 3_072
    assert count["pool"] == 769
    assert count[""] == 85_056_000 + 3_686_400 + 3_072 + 769 + 400 * 769


def test_golden_parameter_counts_with_space_to_depth():
    deep = models.describe("tubevit-b16-s2d", num_classes=400)
    flat = models.describe("tubevit-b16", num_classes=400)
    assert flat.parameters - deep.parameters == (3_686_400 + 3_072) - (2_654_208 + 2_112)


def test_interpolated_kernels_are_the_articles_model_without_its_class_token():
    # The public port adds a class token, and holds the positions of that and of 539 tubes in a parameter.
    model = models.describe("tubevit-b16-interpolated", num_classes=400)
    assert model.parameters + 768 == 86_547_857
    assert (model.tokens + 1) * 768 == 414_720


@pytest.mark.parametrize("frames", [32, 64, 128])
def test_space_to_depth_leaves_the_number_of_tokens(frames):
    golden = {32: 539, 64: 1176, 128: 2499}[frames]
    for name in ("tubevit-b16", "tubevit-b16-s2d"):
        assert models.describe(name, frames=frames).tokens == golden
    assert models.describe("tubevit-b16-core", frames=frames).tokens == {32: 784, 64: 1568, 128: 3136}[frames]


def test_tubes_of_the_callers_own():
    tubes = (
        models.TubeConfig(kernel=(4, 8, 8), stride=(4, 16, 16)),
        models.TubeConfig(kernel=(4, 8, 8), stride=(8, 16, 16), offset=(4, 8, 8), space_to_depth=(1, 2, 1)),
        models.TubeConfig(kernel=(1, 8, 8), stride=(8, 8, 8)),
    )
    model = models.create("tubevit-tiny", **SMALL, tubes=tubes)
    assert [tube.name for tube in model.plan.tubes] == ["tube_4x8x8", "tube_4x8x8_2", "tube_1x8x8"]
    assert model.embed(random_tubes(model.plan)).shape == (2, 192)
    assert model.image_plan is not None
    assert model.embed(random_tubes(model.image_plan)).shape == (2, 192)


def test_positions_as_printed_are_an_option():
    meant = models.create("tubevit-tiny", **SMALL)
    printed = models.create("tubevit-tiny", **SMALL, positions="literal")
    tables = [model.get_submodule("trunk").get_buffer("positions")[0] for model in (meant, printed)]
    # As printed, all but the first few frequencies are so low that their channels stay constant.
    varying = [int((table.std(dim=0) > 1e-3).sum()) for table in tables]
    assert varying[1] < 20 < 100 < varying[0]


def test_pool_of_identical_tokens_is_the_token():
    pool = AttentionPool(12)
    token = torch.randn(3, 1, 12)
    torch.testing.assert_close(pool(token.expand(3, 9, 12)), token[:, 0])


def test_pool_with_zero_weights_is_the_mean():
    pool = AttentionPool(12)
    torch.nn.init.zeros_(pool.score.weight)
    z = torch.randn(3, 9, 12)
    torch.testing.assert_close(pool(z), z.mean(1))


def test_an_image_is_the_2d_tube_of_a_clip():
    model = models.create("tubevit-tiny", **SMALL)
    assert model.image_plan is not None
    assert [tube.name for tube in model.image_plan.tubes] == ["tube_1x16x16"]
    image = random_tubes(model.image_plan)
    trunk = model.get_submodule("trunk")
    assert isinstance(trunk, TubeTrunk)
    with torch.no_grad():
        z = trunk(image)
        assert z.shape == (2, 4 * 6, 192)
        # At 20 frames the 2-D tube stops once, at frame 0: same tokens, same positions.
        last = model.plan.tokens - 24
        assert trunk.image_positions is not None
        torch.testing.assert_close(trunk.image_positions[0], trunk.positions[0, last:])


def test_an_image_batch_gives_no_gradient_to_video_tubes():
    model = models.create("tubevit-tiny", **SMALL)
    assert model.image_plan is not None
    model.embed(random_tubes(model.image_plan)).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    tubes = ("tube_8x8x8", "tube_16x4x4", "tube_4x12x12")
    assert without == {f"trunk.tokenizer.{kind}.{tube}" for kind in ("weight", "bias") for tube in tubes}


def test_position_tells_places_apart():
    model = models.create("tubevit-tiny", **SMALL)
    tubes = random_tubes(model.plan, batch=1)
    moved = {name: x.flip(2) for name, x in tubes.items()}  # the same tubes, rows in another order
    with torch.no_grad():
        assert (model.embed(tubes) - model.embed(moved)).abs().max() > 1e-4


def test_mirrored_selects_per_clip():
    model = models.create("tubevit-tiny", **SMALL)
    tubes = random_tubes(model.plan)
    twice = {name: torch.cat([x[:1], x[:1]]) for name, x in tubes.items()}
    with torch.no_grad():
        z = model.embed(twice, torch.tensor([False, True]))
        torch.testing.assert_close(z[0], model.embed(tubes)[0])
        assert (z[0] - z[1]).abs().max() > 1e-4


def test_mirroring_a_plan_that_is_symmetric_equals_cutting_the_flipped_clip():
    canvas = Canvas(frames=4, height_px=16, width_px=40)
    plan = Plan(tubes=(Tube(name="a", kernel=(2, 8, 8), stride=(2, 8, 8), canvas=canvas),))
    model = TubeViT(TubeTrunk(plan, 24, 1, 2))
    tubes = {name: x.flip(3, 6) for name, x in random_tubes(plan).items()}
    with torch.no_grad():
        torch.testing.assert_close(model.embed(tubes, torch.tensor([True, True])), model.embed(tubes))


@pytest.mark.parametrize("frames", [32, 64])
def test_one_set_of_weights_serves_other_lengths_and_sizes(frames):
    model = models.create("tubevit-tiny", frames=32, size=(64, 96))
    other = models.create("tubevit-tiny", frames=frames, size=(96, 64))
    other.load_state_dict(model.state_dict())
    assert other.embed(random_tubes(other.plan)).shape == (2, 192)
