"""Attention maps: what torch's own attention says, for all tokens together 1, and in the right places."""

from functools import cache
from typing import Any

import pytest
import torch
from small_vivit import HEADS, VARIANTS, random_tubes, shaken
from torch import Tensor, nn

import models
from models import ClipConfig, attention, registry
from models.attention import cross_weights, self_weights
from models.gated import Gated
from models.model import Model
from models.transformer import CrossAttention, SelfAttention
from models.tubevit import TubeViT
from pipeline.plan import Plan

S32, S16 = ClipConfig(arch="ViT-S-32-alt"), ClipConfig(arch="ViT-S-16-alt")
SMALL: models.Options = {"frames": 32, "size": (64, 96)}


@cache
def small(name: str, clip: ClipConfig | None = None) -> Model:
    return models.create(name, clip=clip, **SMALL)


def maps(model: Model, plan: Plan | None = None) -> dict[str, attention.Map]:
    return attention.attention(model, random_tubes(plan or model.plan, batch=1))


def torch_weights(ours: SelfAttention, x_bLD: Tensor) -> Tensor:
    """(b, L, L): what nn.MultiheadAttention says, averaged over heads."""
    theirs = nn.MultiheadAttention(x_bLD.shape[-1], ours.heads, batch_first=True)
    state = {"in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias}
    state |= {"out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias}
    theirs.load_state_dict(state)
    return theirs(x_bLD, x_bLD, x_bLD)[1]


def seen_by(module: nn.Module, model: Model, tubes: dict[str, Tensor]) -> Any:
    """The first input of a module's last call, with all of them in a list."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.embed(tubes)
    handle.remove()
    return seen


@pytest.mark.parametrize(
    ("name", "clip", "expected"),
    [
        ("tubevit-tiny", None, {"pool"}),
        ("vivit-tiny", None, {"class token"}),
        ("clip", S32, {"class token"}),
        ("clip", ClipConfig(arch="ViT-B-16-SigLIP"), {"class token"}),
        ("gated-tiny", S32, {"class token", "adapter"}),
        ("gated-tiny", S16, {"class token", "adapter"}),
        ("grafted-b16", S32, {"class token"}),
        ("dualpath-b16", S32, {"spatial", "temporal"}),
        ("aim-b16", S32, {"class token"}),
        ("st-adapter-b16", S32, {"class token"}),
    ],
)  # fmt: skip
def test_weights_are_shares_of_the_plans_tokens(name, clip, expected):
    model = small(name, clip)
    for plan in model.plans:
        found = maps(model, plan)
        assert found.keys() == expected
        grids = {tube.name: tube.grid for tube in plan.tubes}
        for one in found.values():
            assert all(tuple(x.shape) == grids[tube] for tube, x in one.weights.items())
            assert min(x.min() for x in one.weights.values()) >= 0
            assert sum(x.sum() for x in one.weights.values()) == pytest.approx(1, abs=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_every_family_has_maps():
    tested = {"tubevit", "vivit", "clip", "gated", "grafted", "dualpath", "aim", "st_adapter"}
    assert {registry.preset(name).family for name in models.names()} == tested


@pytest.mark.parametrize("variant", VARIANTS)
def test_vivits_are_what_torch_says(variant):
    model = shaken(variant)
    tubes = random_tubes(model.plan, batch=1)
    weights_TS = maps(model)["class token"].weights[model.plan.tubes[0].name].flatten(1)
    assert weights_TS.sum() == pytest.approx(1, abs=1e-5)
    last: Any = model.encoder.blocks[-1]
    (x,) = seen_by(last.attention, model, tubes)
    if variant == "factorised_dot_product":
        expected_TS = dot_product_received(last.attention, x[0])
    elif variant == "factorised_self_attention":
        (time,) = seen_by(last.attention_time, model, tubes)
        space_TSS, time_STT = torch_weights(last.attention, x), torch_weights(last.attention_time, time)
        expected_TS = torch.zeros(weights_TS.shape)
        for place in range(len(time_STT)):  # every token asks its place's times, and each of these its places
            for asking in range(len(space_TSS)):
                expected_TS += time_STT[place, asking][:, None] * space_TSS[:, place]
        expected_TS /= expected_TS.numel()
    else:
        first = torch_weights(last.attention, x)[:, 0, 1:]
        expected_TS = (first / first.sum(-1, keepdim=True)).reshape(weights_TS.shape) / (
            1 if variant == "joint" else len(weights_TS)
        )
        if variant == "factorised_encoder":
            final: Any = model.temporal_encoder.blocks[-1]
            (z,) = seen_by(final.attention, model, tubes)
            time_T = torch_weights(final.attention, z)[0, 0, 1:]
            expected_TS = expected_TS * len(weights_TS) * (time_T / time_T.sum())[:, None]
    torch.testing.assert_close(weights_TS, expected_TS)


def dot_product_received(module: Any, x_TSD: Tensor) -> Tensor:
    """One token after the other: (T, S), the mean over all tokens of what each of them attends to."""
    times, places, dim = x_TSD.shape
    q, k, _ = module.qkv(x_TSD).chunk(3, dim=-1)
    width, received = dim // HEADS, torch.zeros(times, places)
    for t in range(times):
        for s in range(places):
            for head in range(HEADS):
                own = slice(head * width, (head + 1) * width)
                if head < HEADS // 2:
                    received[t] += (k[t, :, own] @ q[t, s, own] / width**0.5).softmax(0)
                else:
                    received[:, s] += (k[:, s, own] @ q[t, s, own] / width**0.5).softmax(0)
    return (received / (times * places * HEADS)).detach()


@pytest.mark.parametrize("name", ["clip", "gated-tiny", "aim-b16", "dualpath-b16"])
def test_class_tokens_are_what_torch_says(name):
    model: Any = small(name, S32)
    tower = model if name == "clip" else model.clip
    tubes = random_tubes(model.plan, batch=1)
    calls = seen_by(tower.blocks[-1].attention, model, tubes)
    found = maps(model)
    wanted = {"spatial": calls[0], "temporal": calls[1]} if len(found) == 2 and name == "dualpath-b16" else {
        "class token": calls[-1]
    }  # fmt: skip
    for map_name, x in wanted.items():
        first = torch_weights(tower.blocks[-1].attention, x)[:, 0, 1:]
        expected = first / first.sum(-1, keepdim=True) / len(first)
        (weights,) = found[map_name].weights.values()
        assert weights.std() > 1e-5
        torch.testing.assert_close(weights.flatten(1), expected)


def test_siglip_is_read_by_its_pooling():
    model: Any = small("clip", ClipConfig(arch="ViT-B-16-SigLIP"))
    tubes = random_tubes(model.plan, batch=1)
    (x_bLD,) = seen_by(model.pool, model, tubes)
    pool = model.pool
    theirs = nn.MultiheadAttention(x_bLD.shape[-1], pool.attention.heads, batch_first=True)
    q, kv = pool.attention.q, pool.attention.kv
    state = {"in_proj_weight": torch.cat([q.weight, kv.weight]), "in_proj_bias": torch.cat([q.bias, kv.bias])}
    out = {f"out_proj.{part}": x for part, x in pool.attention.out.state_dict().items()}
    theirs.load_state_dict({**state, **out})
    expected = theirs(pool.query.expand(len(x_bLD), -1, -1), x_bLD, x_bLD)[1][:, 0] / len(x_bLD)
    (weights,) = maps(model)["class token"].weights.values()
    torch.testing.assert_close(weights.flatten(1), expected)


def test_cross_attention_is_what_torch_says():
    torch.manual_seed(0)
    ours = CrossAttention(24, 16, 4)
    theirs = nn.MultiheadAttention(24, 4, kdim=16, vdim=16, batch_first=True)
    k, v = ours.kv.weight.chunk(2)
    parts = {"q_proj_weight": ours.q.weight, "k_proj_weight": k, "v_proj_weight": v}
    biases = {"in_proj_bias": torch.cat([ours.q.bias, ours.kv.bias])}
    theirs.load_state_dict(theirs.state_dict() | parts | biases)
    x, source = torch.randn(2, 3, 24), torch.randn(2, 5, 16)
    expected = theirs(x, source, source, average_attn_weights=False)[1]
    torch.testing.assert_close(cross_weights(ours, x, source), expected)


@pytest.mark.parametrize("tube", range(4))
def test_a_pool_that_takes_one_token_names_its_place(tube):
    """Of every tube, its second last place: an order of axes or of tubes gone wrong would show."""
    model = models.create("tubevit-tiny", **SMALL)
    assert isinstance(model, TubeViT)
    plan = model.plan
    counts = [one.tokens for one in plan.tubes]
    (z,) = seen_by(model.pool, model, random_tubes(plan, batch=1))
    with torch.no_grad():  # all tokens are as long, after their LN: none is as near to it as itself
        model.pool.score.weight.copy_(100 * z[:, sum(counts[: tube + 1]) - 2])
    found = maps(model)["pool"].weights
    for number, one in enumerate(plan.tubes):
        expected = torch.zeros(one.tokens)
        expected[-2] = float(number == tube)
        torch.testing.assert_close(found[one.name].flatten(), expected, atol=1e-4, rtol=0)


def test_a_token_of_several_places_is_shared_out():
    """Space-to-depth joins places: 1x2x2 of them here, and 3 of 7 rows are left over."""
    tubes = (models.TubeConfig(kernel=(4, 8, 8), stride=(8, 16, 16), space_to_depth=(1, 2, 2)),)
    model: Any = models.create("tubevit-tiny", frames=8, size=(56, 48), tubes=tubes)
    (grid,) = (tube.grid for tube in model.plan.tubes)
    assert grid == (1, 7, 6)
    (weights,) = maps(model)["pool"].weights.values()
    (z,) = seen_by(model.pool, model, random_tubes(model.plan, batch=1))
    tokens = model.pool.score(z).softmax(1).detach().reshape(3, 3)
    for row in range(7):
        for column in range(6):
            expected = tokens[row // 2, column // 2] / 4 if row < 6 else torch.tensor(0.0)
            torch.testing.assert_close(weights[0, row, column], expected)


def test_an_adapters_tubes_are_found_in_clips():
    """With 16-pixel patches the trunk's 2-D tube is a part of CLIP's: only its frames weigh."""
    model = small("gated-tiny", S16)
    assert isinstance(model, Gated)
    weights = maps(model)["adapter"].weights["tube_1x16x16"]
    assert weights.shape[0] == 8
    assert (weights[0] > 0).all()
    assert not weights[1:].any()


def test_adapters_are_asked_by_class_tokens():
    model: Any = small("gated-tiny", S32)
    tubes = random_tubes(model.plan, batch=1)
    module = model.adapters[max(model.adapters, key=int)].attention
    (x_1LD,) = seen_by(module, model, tubes)
    source = model.trunk(model.plan.take(tubes, model.trunk.plan))
    with torch.no_grad():
        every = cross_weights(module, x_1LD, source).mean(1)[0]
    patches = 6  # of 64x96 pixels
    expected = every.unflatten(0, (-1, 1 + patches))[:, 0].mean(0)
    found = maps(model)["adapter"].weights
    ours = torch.cat([found[tube.name].flatten() for tube in model.trunk.plan.tubes])
    torch.testing.assert_close(ours, expected)


def test_grafted_tokens_are_patches_then_tubes():
    model: Any = small("grafted-b16", S32)
    tubes = random_tubes(model.plan, batch=1)
    (x,) = seen_by(model.clip.blocks[-1].attention, model, tubes)
    first = self_weights(model.clip.blocks[-1].attention, x).mean(1)[0, 0, 1:].detach()
    shares = (first / first.sum()).split([6, *([x.shape[1] - 7])])
    found = maps(model)["class token"].weights
    torch.testing.assert_close(found["tube_1x32x32"].flatten(), shares[0])
    rest = sum(x.sum() for name, x in found.items() if name != "tube_1x32x32")
    torch.testing.assert_close(rest, shares[1].sum())


def test_a_model_without_maps_is_refused():
    class Other(Model):
        pass

    plan = small("vivit-tiny").plan
    with pytest.raises(ValueError, match="no attention is known of a Other"):
        attention.attention(Other(plan, None, 1, None), random_tubes(plan, batch=1))
