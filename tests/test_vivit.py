"""ViViT: golden sizes, and each variant against plain attention under masks and against transformers."""

import math
from typing import get_args

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import VivitConfig, VivitModel

from models import plans
from models.tokenizer import MEAN, STD, from_conv3d
from models.transformer import Encoder
from models.vivit import Variant, ViViT, inflate
from pipeline.plan import Canvas, Plan, Tube

VARIANTS = get_args(Variant)
DIM, LAYERS, HEADS, PATCH = 24, 2, 4, 8
FRAMES, SIZE = 6, (16, 24)  # with tubelets of 2 frames: 3 times of 2 x 3 places


def plan_of(tubelet: tuple[int, int, int] = (2, PATCH, PATCH), frames: int = FRAMES) -> Plan:
    return plans.vivit(plans.canvas(frames, SIZE, "area"), tubelet)


def frame_plan(every: int = 2) -> Plan:
    """Single frames, the paper's uniform sampling."""
    return plans.clip(plans.canvas(FRAMES, SIZE, "area"), PATCH, every)


def vivit(variant: Variant, plan: Plan | None = None, num_classes: int | None = None) -> ViViT:
    torch.manual_seed(0)
    return ViViT(
        plan or plan_of(), DIM, LAYERS, HEADS, variant=variant, temporal_layers=2, num_classes=num_classes
    ).eval()


def shaken(variant: Variant, plan: Plan | None = None) -> ViViT:
    """With every weight moved, so that none is zero or one."""
    model = vivit(variant, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def random_tubes(plan: Plan, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        tube.name: torch.randint(0, 256, (batch, *tube.shape), dtype=torch.uint8, generator=generator)
        for tube in plan.tubes
    }


def video(plan: Plan, tubes: dict[str, torch.Tensor]) -> torch.Tensor:
    """The normalised clip (B, 3, T, H, W) that dense tubes without gaps were cut from."""
    (tube,) = plan.tubes
    x = tubes[tube.name].permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, 3, n_t, kT, n_h, kH, n_w, kW)
    pixels = x.flatten(6, 7).flatten(4, 5).flatten(2, 3).float() / 255
    mean, std = (torch.tensor(value)[:, None, None, None] for value in (MEAN, STD))
    return (pixels - mean) / std


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
    plan = plans.vivit(plans.canvas(32, (224, 224), "area"), (2, 16, 16))
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


def from_transformers(theirs: dict[str, torch.Tensor], tube: str) -> dict[str, torch.Tensor]:
    """The weights of a VivitModel under our names."""
    ours = {
        f"tokenizer.weight.{tube}": from_conv3d(theirs["embeddings.patch_embeddings.projection.weight"]),
        f"tokenizer.bias.{tube}": theirs["embeddings.patch_embeddings.projection.bias"],
        "class_embedding": theirs["embeddings.cls_token"].flatten(),
        "positional_embedding": theirs["embeddings.position_embeddings"][0],
    }
    names = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attention.out",
        "mlp.fc1": "mlp.up",
        "mlp.fc2": "mlp.down",
    }
    for kind in ("weight", "bias"):
        ours[f"encoder.norm.{kind}"] = theirs[f"layernorm.{kind}"]
        for i in range(LAYERS):
            for theirs_name, name in names.items():
                ours[f"encoder.blocks.{i}.{name}.{kind}"] = theirs[f"layers.{i}.{theirs_name}.{kind}"]
            parts = [theirs[f"layers.{i}.attention.{part}_proj.{kind}"] for part in "qkv"]
            ours[f"encoder.blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
    return ours


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


def plain_embedding(
    variant: str, state: dict[str, torch.Tensor], x_ND: torch.Tensor, times: int, places: int
) -> torch.Tensor:
    """One clip's embedding: all tokens in one sequence, and masks for what they may see."""
    table_ND = state["positional_embedding"]
    time, place = torch.arange(times * places) // places, torch.arange(times * places) % places
    same_time, same_place = time[:, None] == time, place[:, None] == place
    anything = torch.ones(1 + times * places, 1 + times * places, dtype=torch.bool)
    if variant == "joint":
        x_ND = torch.cat([state["class_embedding"][None], x_ND]) + table_ND[: 1 + len(x_ND)]
        return plain_encoder(state, "encoder.", x_ND, [anything] * HEADS)[0]
    if variant == "factorised_dot_product":
        masks = [same_time] * (HEADS // 2) + [same_place] * (HEADS // 2)
        return plain_encoder(state, "encoder.", x_ND + table_ND[: len(x_ND)], masks).mean(0)
    if variant == "factorised_self_attention":
        x_ND = x_ND + table_ND[: len(x_ND)]
        return plain_encoder(state, "encoder.", x_ND, [same_time] * HEADS, [same_place] * HEADS).mean(0)
    of_frames = []
    for t in range(times):
        frame = torch.cat([state["class_embedding"][None], x_ND[time == t]]) + table_ND
        of_frames.append(
            plain_encoder(state, "encoder.", frame, [anything[: len(frame), : len(frame)]] * HEADS)[0]
        )
    if variant == "frame_mean":
        return sum(of_frames[1:], of_frames[0]) / times
    z = torch.stack([state["temporal_class_embedding"], *of_frames])
    z = z + state["temporal_positional_embedding"][: len(z)]
    return plain_encoder(state, "temporal_encoder.", z, [anything[: len(z), : len(z)]] * HEADS)[0]


def plain_encoder(
    state: dict[str, torch.Tensor],
    prefix: str,
    x: torch.Tensor,
    masks: list[torch.Tensor],
    time_masks: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """(L, D) -> (L, D): pre-LN blocks, with a second attention where there are masks for it."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]

    def affine(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attention(name: str, x: torch.Tensor, masks: list[torch.Tensor]) -> torch.Tensor:
        q, k, v = affine(f"{name}.qkv", x).chunk(3, dim=-1)
        width, heads = DIM // HEADS, []
        for head, mask in enumerate(masks):
            own = slice(head * width, (head + 1) * width)
            scores = (q[:, own] @ k[:, own].T / math.sqrt(width)).masked_fill(~mask, -math.inf)
            heads.append(scores.softmax(-1) @ v[:, own])
        return affine(f"{name}.out", torch.cat(heads, dim=-1))

    def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    for i in range(sum(name.startswith(prefix) and name.endswith("norm1.weight") for name in state)):
        block = f"{prefix}blocks.{i}"
        x = x + attention(f"{block}.attention", norm(f"{block}.norm1", x), masks)
        if time_masks is not None:
            x = x + attention(f"{block}.attention_time", norm(f"{block}.norm_time", x), time_masks)
        hidden = tanh_gelu(affine(f"{block}.mlp.up", norm(f"{block}.norm2", x)))
        x = x + affine(f"{block}.mlp.down", hidden)
    return norm(f"{prefix}norm", x)


# From an image ViT


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
    model = vivit(variant, plans.vivit(canvas, (2, PATCH, PATCH)))
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
    model = vivit("joint", plans.vivit(plans.canvas(FRAMES, (16, 32), "area"), (2, 4, 16)))
    with pytest.raises(ValueError, match="4x16"):
        inflate(model, image_state(), "central")


def test_unknown_kernels():
    with pytest.raises(ValueError, match="did you mean 'central'"):
        inflate(vivit("joint"), image_state(), "centre")  # type: ignore[arg-type]


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
def test_compiles_whole(variant):
    torch.compiler.reset()
    model = shaken(variant)
    tubes = random_tubes(model.plan)
    with torch.no_grad():
        compiled = torch.compile(model.embed, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(tubes), model.embed(tubes))


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
