"""ViViT from the weights of an image ViT: kernels, positions, attention over time."""

import pytest
import torch
from small_vivit import (
    DIM,
    FRAMES,
    HEADS,
    LAYERS,
    PATCH,
    VARIANTS,
    plan_of,
    random_tubes,
    tubelets,
    video,
    vivit,
)
from torch.nn import functional

from models import plans
from models.transformer import Encoder
from models.vivit import inflate


def image_state(grid: int = 3, patch: int = PATCH, bias: bool = True) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    encoder = Encoder(DIM, LAYERS, HEADS, 4 * DIM)
    state = {
        "patch.weight": 0.1 * torch.randn(DIM, patch * patch * 3),
        "class_embedding": torch.randn(DIM),
        "positional_embedding": torch.randn(1 + grid**2, DIM),
    }
    if bias:
        state["patch.bias"] = torch.randn(DIM)
    for name, tensor in encoder.state_dict().items():
        name = name.replace("norm.", "norm_post.") if name.startswith("norm.") else name
        state[name] = tensor + 0.1 * torch.randn_like(tensor)
    return state


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_central_kernel_embeds_the_middle_frame_as_the_image_vit_does(frames):
    model = vivit("joint", plan_of((frames, PATCH, PATCH)))
    image = image_state()
    inflate(model, image, "central")
    tubes = random_tubes(model.plan)
    middle = video(model.plan, tubes)[:, :, frames // 2 :: frames]
    with torch.no_grad():
        torch.testing.assert_close(model.tokenizer(tubes), embed_2d(image, middle), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_an_inflated_kernel_embeds_the_mean_frame(frames):
    model = vivit("joint", plan_of((frames, PATCH, PATCH)))
    image = image_state(bias=False)
    inflate(model, image, "inflate")
    tubes = random_tubes(model.plan)
    mean = video(model.plan, tubes).unflatten(2, (-1, frames)).mean(3)
    with torch.no_grad():
        torch.testing.assert_close(model.tokenizer(tubes), embed_2d(image, mean), atol=1e-4, rtol=1e-4)


def embed_2d(image: dict[str, torch.Tensor], frames_BCTHW: torch.Tensor) -> torch.Tensor:
    """The image ViT's patches of each frame: (B, T*S, D)."""
    kernel = image["patch.weight"].unflatten(1, (PATCH, PATCH, 3)).permute(0, 3, 1, 2)
    x_bCHW = frames_BCTHW.transpose(1, 2).flatten(0, 1)
    x_bDhw = functional.conv2d(x_bCHW, kernel, image.get("patch.bias"), stride=PATCH)
    return x_bDhw.flatten(2).transpose(1, 2).unflatten(0, (len(frames_BCTHW), -1)).flatten(1, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_comes_from_the_image_and_what_does_not(variant):
    model = vivit(variant, num_classes=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image = image_state()
    inflate(model, image, "central")
    kept = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    own = ("head.", "temporal_")
    assert kept == {n for n in before if n.startswith(own) or "attention_time.out" in n}
    state = model.state_dict()
    torch.testing.assert_close(state["encoder.norm.weight"], image["norm_post.weight"])
    for part in ("attention.qkv.weight", "mlp.down.bias"):
        torch.testing.assert_close(state[f"encoder.blocks.1.{part}"], image[f"blocks.1.{part}"])
    if variant == "factorised_self_attention":
        for ours, theirs in (("attention_time.qkv", "attention.qkv"), ("norm_time", "norm1")):
            for kind in ("weight", "bias"):
                ours_now = state[f"encoder.blocks.1.{ours}.{kind}"]
                torch.testing.assert_close(ours_now, image[f"blocks.1.{theirs}.{kind}"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_positions_of_the_image_are_repeated_over_time(variant):
    canvas = plans.canvas(FRAMES, (16, 16), "area")
    model = vivit(variant, tubelets(canvas, (2, PATCH, PATCH)))
    image = image_state(grid=2)
    inflate(model, image, "central")
    first, places = image["positional_embedding"].split([1, 4])
    expected = {
        "joint": torch.cat([first, places, places, places]),
        "factorised_encoder": image["positional_embedding"],
        "frame_mean": image["positional_embedding"],
    }.get(variant, torch.cat([places, places, places]))
    assert torch.equal(model.positional_embedding, expected)


def test_positions_are_resized_to_the_grid():
    model = vivit("frame_mean")
    image = image_state(grid=4)
    image["positional_embedding"][1:] = torch.arange(4.0)[:, None, None].expand(4, 4, DIM).reshape(16, DIM)
    inflate(model, image, "central")
    table = model.positional_embedding.detach()
    assert torch.equal(table[0], image["positional_embedding"][0])
    rows = table[1:].unflatten(0, (2, 3))
    torch.testing.assert_close(rows[0], (3 - rows[1]))  # they ran down the rows,
    torch.testing.assert_close(rows[:, :1].expand_as(rows), rows)  # and not across
    assert (rows[1] - rows[0] > 1).all()


@pytest.mark.parametrize("kernels", ["central", "inflate"])
def test_zero_attention_over_time_is_a_spatial_vit(kernels):
    model = vivit("factorised_self_attention")
    image = image_state()
    inflate(model, image, kernels)
    spatial = Encoder(DIM, LAYERS, HEADS, 4 * DIM, activation="gelu_tanh")
    names = {name: name.replace("norm.", "norm_post.") for name in spatial.state_dict() if name[:4] == "norm"}
    spatial.load_state_dict({name: image[names.get(name, name)] for name in spatial.state_dict()})
    tubes = random_tubes(model.plan)
    with torch.no_grad():
        x_BTSD = (model.tokenizer(tubes) + model.positional_embedding).unflatten(1, (3, 6))
        expected = torch.stack([spatial(x_BTSD[:, t]) for t in range(3)], dim=1).mean((1, 2))
        torch.testing.assert_close(model.embed(tubes), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("from_image", [False, True])
def test_attention_over_time_learns_behind_its_zero_projection(from_image):
    model = vivit("factorised_self_attention", num_classes=5).train()
    if from_image:
        inflate(model, image_state(), "central")
    names = [
        f"encoder.blocks.{i}.attention_time.{part}.weight" for i in range(LAYERS) for part in ("qkv", "out")
    ]
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(random_tubes(model.plan)), torch.tensor([1, 4])).backward()
        optimizer.step()
        for name in names:
            moved = [
                not torch.equal(new, old)
                for new, old in zip(model.get_parameter(name).chunk(3), before[name].chunk(3), strict=True)
            ]
            assert moved == [step > 0 or ".out." in name] * 3, name


def test_repeated_positions_do_not_tell_time_until_they_differ():
    model = vivit("joint")
    inflate(model, image_state(), "central")
    tubes = random_tubes(model.plan)
    turned = {name: x[:, [2, 0, 1]] for name, x in tubes.items()}
    with torch.no_grad():
        torch.testing.assert_close(model.embed(turned), model.embed(tubes), atol=1e-5, rtol=1e-5)
        model.positional_embedding += 0.5 * torch.randn_like(model.positional_embedding)
        assert (model.embed(turned) - model.embed(tubes)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_post.bias": None}, "norm_post.bias is missing"),
        ({"positional_embedding": None}, "positional_embedding is missing"),
        ({"positional_embedding": torch.zeros(7, DIM)}, r"positional_embedding is \(7, 24\), not \(5, 24\)"),
        ({"positional_embedding": torch.zeros(0, DIM)}, r"positional_embedding is \(0, 24\), not \(2, 24\)"),
        ({"proj": torch.zeros(DIM, DIM)}, "proj is unexpected"),
        ({"patch.bias": torch.zeros(3)}, r"patch.bias is \(3,\), not \(24,\)"),
        ({"patch.weight": torch.zeros(DIM, 768)}, r"patch.weight is \(24, 768\), not \(24, 192\)"),
        ({"blocks.1.mlp.up.weight": torch.zeros(2, DIM)}, r"mlp.up.weight is \(2, 24\), not \(96, 24\)"),
    ],
)
def test_an_image_vit_that_does_not_fit(change, message):
    model = vivit("factorised_self_attention")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image = {name: x for name, x in (image_state() | change).items() if x is not None}
    with pytest.raises(ValueError, match=message):
        inflate(model, image, "central")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_image_vit_with_other_patches():
    # As many pixels as an 8x8 patch.
    model = vivit("joint", tubelets(plans.canvas(FRAMES, (16, 32), "area"), (2, 4, 16)))
    with pytest.raises(ValueError, match="4x16"):
        inflate(model, image_state(), "central")
