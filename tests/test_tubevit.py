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
        model = TubeViT(models.plan("tubevit-b16"), 768, 12, 12, num_classes=400)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_modules()}
    assert count["trunk.encoder"] == 85_056_000
    assert count["trunk.tokenizer.weight"] == 3_686_400
    assert count["trunk.tokenizer.bias"] == 3_072
    assert count["pool"] == 769
    assert count[""] == 85_056_000 + 3_686_400 + 3_072 + 769 + 400 * 769


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
    model = TubeViT(plan, 24, 1, 2)
    tubes = {name: x.flip(3, 6) for name, x in random_tubes(plan).items()}
    with torch.no_grad():
        torch.testing.assert_close(model.embed(tubes, torch.tensor([True, True])), model.embed(tubes))


@pytest.mark.parametrize("frames", [32, 64])
def test_one_set_of_weights_serves_other_lengths_and_sizes(frames):
    model = models.create("tubevit-tiny", frames=32, size=(64, 96))
    other = models.create("tubevit-tiny", frames=frames, size=(96, 64))
    other.load_state_dict(model.state_dict())
    assert other.embed(random_tubes(other.plan)).shape == (2, 192)
