"""ViViT: golden sizes, and each variant against plain attention under masks and against transformers."""

import math

import pytest
import torch
from small_vivit import (
    DIM,
    FRAMES,
    HEADS,
    LAYERS,
    PATCH,
    SIZE,
    VARIANTS,
    frame_plan,
    plain_embedding,
    plan_of,
    random_tubes,
    shaken,
    tubelets,
    video,
    vivit,
)
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import VivitConfig, VivitModel

from benchmarks.baselines import from_transformers
from models import plans
from models.vivit import ViViT
from pipeline.plan import Canvas, Plan, Tube

# Sizes


@pytest.mark.parametrize(
    ("variant", "parameters", "gmac"),
    [
        ("joint", 88_954_000, 451.5),
        ("factorised_encoder", 115_062_928, 283.3),
        ("factorised_self_attention", 117_319_312, 371.1),
        ("factorised_dot_product", 88_952_464, 276.2),
        ("frame_mean", 86_696_080, 282.9),
    ],
)
def test_golden_sizes_of_b_16x2(variant, parameters, gmac):
    plan = tubelets(plans.canvas(32, (224, 224), "area"), (2, 16, 16))
    with torch.device("meta"):
        model = ViViT(plan, 768, 12, 12, variant=variant, num_classes=400)
        tubes = {tube.name: torch.empty(1, *tube.shape, dtype=torch.uint8) for tube in plan.tubes}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            assert model(tubes).shape == (1, 400)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.01)


def test_first_cross_entropy_is_that_of_a_guess():
    model = vivit("joint", num_classes=400)
    loss = functional.cross_entropy(model(random_tubes(model.plan)), torch.tensor([3, 99]))
    assert abs(loss - math.log(400)) < 0.2


@pytest.mark.parametrize("variant", VARIANTS)
def test_positions_are_small_at_first(variant):
    tables = [p for name, p in vivit(variant).named_parameters() if "positional" in name]
    assert len(tables) == (2 if variant == "factorised_encoder" else 1)
    for table in tables:
        assert table.detach().std() == pytest.approx(0.02, rel=0.25)


# Parity


def test_joint_equals_transformers():
    config = VivitConfig(
        image_size=SIZE,
        num_frames=FRAMES,
        tubelet_size=[2, PATCH, PATCH],
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * DIM,
        hidden_act="gelu_fast",
        layer_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    theirs = VivitModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model = vivit("joint")
    (tube,) = model.plan.tubes
    model.load_state_dict(from_transformers(theirs.state_dict(), tube.name))
    tubes = random_tubes(model.plan)
    with torch.no_grad():
        expected = theirs(video(model.plan, tubes).transpose(1, 2)).last_hidden_state[:, 0]
        torch.testing.assert_close(model.embed(tubes), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frames", ["tubelets", "faint tubelets", "sampled frames", "image"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_equals_plain_attention(variant, frames):
    model = shaken(variant, plan_of() if "tubelets" in frames else frame_plan())
    if frames == "faint tubelets":  # of a variance that the epsilon of the first LN is not small beside
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "encoder" not in name:
                    parameter *= 1e-3
    plan = model.image_plan if frames == "image" else model.plan
    assert plan is not None
    (tube,) = plan.tubes
    (times, rows, columns), tubes = tube.grid, random_tubes(plan)
    assert (times, rows, columns) == (1 if frames == "image" else 3, 2, 3)
    state = dict(model.named_parameters())
    with torch.no_grad():
        tokens = model.tokenizer(tubes)
        expected = torch.stack([plain_embedding(variant, state, x, times, rows * columns) for x in tokens])
        torch.testing.assert_close(model.embed(tubes), expected, atol=1e-4, rtol=1e-4)


# What every model does


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_time_matters_unless_frames_are_averaged(variant):
    model = shaken(variant)
    tubes = random_tubes(model.plan)
    turned = {name: x.flip(1) for name, x in tubes.items()}
    with torch.no_grad():
        difference = (model.embed(turned) - model.embed(tubes)).abs().max()
    assert (difference < 1e-5) if variant == "frame_mean" else (difference > 1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mirrored_makes_no_difference_but_places_do(variant):
    model = shaken(variant)
    tubes = random_tubes(model.plan)
    flipped = {name: x.flip(3, 6) for name, x in tubes.items()}
    with torch.no_grad():
        z = model.embed(flipped)
        assert torch.equal(model.embed(flipped, torch.tensor([True, False])), z)
        assert (model.embed(tubes) - z).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_clip_does_not_see_the_others(variant):
    model = shaken(variant)
    tubes = random_tubes(model.plan, batch=3)
    with torch.no_grad():
        alone = model.embed({name: x[1:2] for name, x in tubes.items()})
        torch.testing.assert_close(model.embed(tubes)[1:2], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_learns(variant):
    model = shaken(variant)
    model.embed(random_tubes(model.plan)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputing_activations_changes_no_gradient(variant):
    gradients, kept = [], [0, 0]
    for recompute in (False, True):
        model = shaken(variant)
        model.recompute_activations(recompute)

        def keep(tensor: torch.Tensor, recompute: bool = recompute) -> torch.Tensor:
            kept[recompute] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.embed(random_tubes(model.plan)).square().sum()
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1])
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_embeddings_are_float32_under_autocast(variant):
    model = shaken(variant)
    tubes = random_tubes(model.plan)
    with torch.no_grad():
        expected = model.embed(tubes)
        with torch.autocast("cpu", torch.bfloat16):
            z = model.embed(tubes)
        assert model.bfloat16().embed(tubes).dtype == torch.float32
    assert z.dtype == torch.float32
    assert functional.cosine_similarity(z, expected).min() > 0.99


def test_tubelets_of_two_frames_take_no_images():
    assert vivit("joint").image_plan is None
    model = vivit("joint", frame_plan())
    assert model.image_plan is not None
    assert model.image_plan.tubes[0].grid == (1, 2, 3)


def test_bad_arguments():
    canvas = Canvas(frames=4, height_px=16, width_px=16)
    two = Plan(
        tubes=tuple(
            Tube(name=n, kernel=(1, 8, 8), stride=(s, 8, 8), canvas=canvas) for n, s in (("a", 1), ("b", 2))
        )
    )
    with pytest.raises(ValueError, match="one tube, but this one has 2"):
        ViViT(two, DIM, LAYERS, HEADS, variant="joint")
    with pytest.raises(ValueError, match="heads = 3: .* even"):
        ViViT(plan_of(), DIM, LAYERS, 3, variant="factorised_dot_product")
    with pytest.raises(ValueError, match="did you mean 'joint'"):
        ViViT(plan_of(), DIM, LAYERS, HEADS, variant="joined")  # type: ignore[arg-type]


def test_bad_inputs():
    model = vivit("joint")
    (name,) = (tube.name for tube in model.plan.tubes)
    tubes = random_tubes(model.plan)
    with pytest.raises(ValueError, match="shapes"):
        model.embed({name: tubes[name][:, :2]})
    with pytest.raises(ValueError, match="uint8"):
        model.embed({name: tubes[name].float()})
    with pytest.raises(ValueError, match="num_classes"):
        model(tubes)
