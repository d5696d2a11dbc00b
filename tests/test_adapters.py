"""Adapters in a frozen tower: AIM and ST-Adapter, which start as CLIP."""

import pytest
import torch
from tiny import VARIANTS, make, random_tubes, wake
from torch import nn
from torch.nn import functional

from models import aim, plans, st_adapter
from models.adapters import Bottleneck
from models.aim import AIM
from models.clip import Clip
from models.st_adapter import STAdapter
from models.towers import tower
from models.transformer import Block

KINDS = ("aim", "st", "st twice")


def test_a_bottleneck_starts_at_zero_or_as_its_input():
    u = torch.randn(2, 5, 12)
    assert torch.equal(Bottleneck(12, 4)(u), torch.zeros_like(u))
    assert torch.equal(Bottleneck(12, 4, skip=True)(u), u)


@pytest.mark.parametrize("skip", [False, True])
def test_a_bottleneck_written_out(skip):
    adapter, u = Bottleneck(12, 4, skip=skip).eval(), torch.randn(2, 5, 12)
    wake(adapter)
    hidden = u @ adapter.down.weight.T + adapter.down.bias
    expected = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)) @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(adapter(u), expected + u if skip else expected)


def test_dropout_is_of_hidden_channels_and_in_training_alone():
    adapter, u = Bottleneck(1, 20_000), torch.ones(1, 1)
    nn.init.ones_(adapter.down.weight)
    nn.init.ones_(adapter.up.weight)
    one = functional.gelu(torch.ones(()))
    torch.testing.assert_close(adapter.eval()(u).squeeze(), 20_000 * one, atol=0, rtol=1e-4)
    torch.manual_seed(0)
    many = adapter.train()(u.expand(200, 1)).detach() / one  # sums of 20,000 times 0 or 1 / 0.9
    assert abs(many.mean() - 20_000) < 20
    assert many.std() == pytest.approx((20_000 * 0.1 / 0.9) ** 0.5, rel=0.2)
    assert torch.equal(Bottleneck(3, 2, skip=True).train()(u.expand(5, 3)), u.expand(5, 3))


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_they_start_as_clip_bit_for_bit(kind, variant, images):
    model = make(kind, **VARIANTS[variant])
    clip = model.get_submodule("clip")
    assert isinstance(clip, Clip)
    plan = model.image_plan if images else model.plan
    assert plan is not None
    tubes = random_tubes(plan)
    with torch.no_grad():
        assert torch.equal(model.embed(tubes), clip.embed(tubes))
        wake(model)
        assert (model.embed(tubes) - clip.embed(tubes)).abs().max() > 1e-3


def test_aim_written_out():
    """Section 3.2-3.4, a token at a time and a frame at a time."""
    torch.manual_seed(0)
    batch, frames, tokens = 2, 3, 5
    block, adapters = Block(32, 2, 64, layer_scale=0.5), aim.Adapters(32).eval()
    wake(adapters)
    x = torch.randn(batch, frames, tokens, 32)
    y = x.clone()
    for b in range(batch):
        for token in range(tokens):
            along_time = block.attention(block.norm1(x[b, :, token][None]))[0]
            y[b, :, token] += adapters.time(0.5 * along_time)
    for b in range(batch):
        for frame in range(frames):
            z = y[b, frame][None]
            attended = 0.5 * block.attention(block.norm1(z))
            z = z + attended + adapters.space.up(functional.gelu(adapters.space.down(attended)))
            u = block.norm2(z)
            y[b, frame] = (z + 0.5 * block.mlp(u) + 0.5 * adapters.mlp(u))[0]
    got = adapters(x.flatten(0, 1), block, batch).unflatten(0, (batch, frames))
    torch.testing.assert_close(got, y, atol=1e-5, rtol=1e-5)


def test_st_adapter_written_out():
    """Equation 4 with a kernel of three frames; the class token and other clips are left alone."""
    torch.manual_seed(0)
    batch, frames, patches = 2, 3, 4
    adapter = st_adapter.Convolution(32)
    wake(adapter)
    x = torch.randn(batch, frames, 1 + patches, 32)
    hidden = functional.pad(adapter.down(x[:, :, 1:]), (0, 0, 0, 0, 1, 1))  # no frame before or after: 0
    kernel = adapter.time.weight.flatten(1).T
    assert adapter.time.bias is not None
    mixed = sum(kernel[k] * hidden[:, k : k + frames] for k in range(3)) + adapter.time.bias
    y = torch.cat([x[:, :, :1], x[:, :, 1:] + adapter.up(mixed)], dim=2)
    before = x.clone()
    got = adapter(x.flatten(0, 1), batch, patches).unflatten(0, (batch, frames))
    torch.testing.assert_close(got, y, atol=1e-5, rtol=1e-5)
    assert torch.equal(x, before)


def test_st_adapters_stand_before_attention_and_mlp():
    torch.manual_seed(0)
    block, adapters, x = (
        Block(32, 2, 64, layer_scale=0.5),
        st_adapter.Adapters(32, True),
        torch.randn(6, 5, 32),
    )
    wake(adapters)
    assert adapters.mlp is not None
    y = adapters.attention(x, 2, 4)
    y = adapters.mlp(y + 0.5 * block.attention(block.norm1(y)), 2, 4)
    torch.testing.assert_close(adapters(x, block, 2, 4), y + 0.5 * block.mlp(block.norm2(y)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_frames_matters(kind):
    model = make(kind)
    wake(model)
    tubes = random_tubes(model.plan)
    (name,) = tubes
    with torch.no_grad():
        z = model.embed(tubes)
        assert (model.embed({name: tubes[name].flip(1)}) - z).abs().max() > 1e-4
        clip = model.get_submodule("clip")
        assert isinstance(clip, Clip)  # whose mean has no order
        torch.testing.assert_close(clip.embed({name: tubes[name].flip(1)}), clip.embed(tubes))


@pytest.mark.parametrize(
    ("arch", "kind", "published", "count"),
    [
        ("ViT-B-16", "aim", 10.97, 12 * 3 * 295_872 + 8 * 768 + 400 * 769),
        ("ViT-L-14", "aim", 38.26, 24 * 3 * 525_568 + 8 * 1024 + 400 * 1025),
        ("ViT-B-16", "st", 7.42, 12 * 592_512 + 400 * 769),
        ("ViT-B-16", "st twice", 14.35, 24 * 592_512 + 174 * 769),
    ],
)
def test_golden_parameter_counts(arch, kind, published, count):
    """Of the papers, in millions: their heads, for Kinetics-400 and for Something-Something v2, included."""
    plan = plans.clip(plans.canvas(32, (224, 224), "area"), tower(arch).patch, 4)
    with torch.device("meta"):
        model = (
            AIM(plan, tower(arch))
            if kind == "aim"
            else STAdapter(plan, tower(arch), before_mlp="twice" in kind)
        )
    theirs = (174 if kind == "st twice" else 400) * (tower(arch).width + 1)
    ours = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert ours + theirs == count
    assert round(count / 1e6, 2) == published


@pytest.mark.parametrize("kind", KINDS)
def test_what_starts_at_zero_learns_first_and_the_rest_of_an_adapter_can_follow(kind):
    model = make(kind, num_classes=5).train()
    zero, follows = ("up.", "up.") if kind == "aim" else ("time.", "down.")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for names in (zero, follows, "down."):
        optimizer.zero_grad()
        model(random_tubes(model.plan)).square().sum().backward()
        optimizer.step()
        first = dict(model.get_submodule("adapters.0").named_parameters())
        assert all(p.grad is not None and p.grad.any() for name, p in first.items() if names in name), names


def test_no_graph_is_built_before_the_first_adapter():
    for kind, first in (("aim", "adapters.0"), ("st", "adapters.0.attention.down")):
        model = make(kind)
        seen: dict[str, bool] = {}

        def note(name: str, seen: dict[str, bool] = seen):
            return lambda module, inputs, output: seen.update({name: output.requires_grad})

        for name in ("clip.norm_pre", first):
            model.get_submodule(name).register_forward_hook(note(name))
        model.embed(random_tubes(model.plan))
        assert seen == {"clip.norm_pre": False, first: True}


def test_the_temporal_embedding_tells_frames_apart():
    model = make("aim")
    assert isinstance(model, AIM)
    tubes = random_tubes(model.plan)
    (name,) = tubes
    still = {name: tubes[name][:, :1].expand_as(tubes[name])}  # one picture in all frames
    with torch.no_grad():
        z = model.embed(still)
        for frame in range(4):
            model.temporal_embedding.zero_()
            model.temporal_embedding[frame] = torch.randn(32)
            assert (model.embed(still) - z).abs().max() > 1e-4, frame
            image = model.embed({name: tubes[name][:, :1]})
            assert ((image - z).abs().max() < 1e-5) == (frame > 0)  # an image is the first frame
