"""The contract of every registered model, and what is said about bad settings."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models
from models import ClipConfig, build, registry, weights
from models.model import Model
from pipeline.plan import Plan

ROOT = Path(models.__file__).parents[1]
SMALL = {"frames": 32, "size": (64, 96)}
TOWER = str(Path(__file__).parent / "tower.json")  # 64 channels, 4 blocks, 16-pixel patches
# One name of every kind: those that differ in their sizes alone are the same code.
KINDS = {
    (kind.family, kind.tubes, kind.variant, kind.interpolated): name
    for name, kind in reversed(registry.MODELS.items())
}
COMPUTED = sorted(KINDS.values())


@pytest.fixture
def shrunk(monkeypatch):
    """Every preset with 2 layers of 48 channels, which compute in no time."""
    for name, kind in registry.MODELS.items():
        if kind.dim:
            monkeypatch.setitem(registry.MODELS, name, replace(kind, dim=48, layers=2, heads=4))


def options(name: str, **more) -> models.Options:
    """Small clips, and a tiny CLIP tower where there is one."""
    clip = {} if registry.preset(name).arch is None else {"clip": ClipConfig(arch=TOWER)}
    return {**SMALL, **clip, **more}  # type: ignore[typeddict-item]


def small(name: str, **more) -> Model:
    return models.create(name, **options(name, **{"num_classes": 3, **more}))


def perturb(model: torch.nn.Module) -> None:
    """Gates and what starts at zero hide the rest: move every trainable weight."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))


def random_tubes(plan: Plan, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        tube.name: torch.randint(0, 256, (batch, *tube.shape), dtype=torch.uint8, generator=generator)
        for tube in plan.tubes
    }


def awake(name: str) -> tuple[Model, dict[str, torch.Tensor]]:
    """A small model whose gates are open, and clips for it."""
    torch.manual_seed(0)
    model = small(name)
    perturb(model)
    return model, random_tubes(model.plan)


@pytest.mark.usefixtures("shrunk")
@pytest.mark.parametrize("name", COMPUTED)
def test_contract(name, tmp_path):
    model, tubes = awake(name)
    assert model.plan == models.plan(name, **options(name))
    assert model.image_plan == models.image_plan(name, **options(name))
    assert not model.training
    with torch.no_grad():
        z = model.embed(tubes)
        assert (z.shape, z.dtype) == ((2, model.dim), torch.float32)
        assert z.isfinite().all()
        assert (z[0] - z[1]).abs().max() > 1e-4
        assert torch.equal(model.embed(tubes), z)
        alone = model.embed({tube: x[1:] for tube, x in tubes.items()})
        torch.testing.assert_close(alone[0], z[1], atol=1e-4, rtol=1e-4)
        assert model.embed(tubes, torch.tensor([True, False])).shape == z.shape
        logits = model(tubes)
        assert logits.shape == (2, 3)
        if model.image_plan is not None:
            images = random_tubes(model.image_plan)
            assert model.embed(images, torch.tensor([True, False])).shape == z.shape
            assert model(images).shape == (2, 3)
    first = model.plan.tubes[0].name
    with pytest.raises(ValueError, match="tubes have shapes"):
        model.embed({**tubes, first: tubes[first][:, :, :1]})
    # The checkpoint, which needs no file but its own.
    weights.save(model, tmp_path)
    again = models.create(name, checkpoint=tmp_path, **options(name))
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(tubes), logits)


@pytest.mark.usefixtures("shrunk")
@pytest.mark.parametrize("name", COMPUTED)
def test_gradient_reaches_exactly_what_trains_also_when_activations_are_computed_again(name):
    model, tubes = awake(name)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable  # the head, at least
    gradients = []
    for recompute in (False, True):
        model.recompute_activations(recompute)
        model.zero_grad()
        model(tubes).square().sum().backward()
        reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert reached == trainable
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient)


@pytest.mark.slow
@pytest.mark.usefixtures("shrunk")
@pytest.mark.parametrize("name", COMPUTED)
def test_compiles_without_a_break(name):
    model, tubes = awake(name)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(tubes), model(tubes), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("shrunk")
@pytest.mark.parametrize("name", COMPUTED)
def test_a_probe_trains_its_head_alone(name):
    model = small(name, probe=True)
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"head"}
    model(random_tubes(model.plan)).sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("head."))


@pytest.mark.parametrize(
    "name", ["tubevit-h16-s2d", "vivit-l16x2", "gated-l14", "grafted-h14", "dualpath-l14", "aim-l14"]
)
def test_contract_of_large_models_without_computing(name):
    config = registry.resolve(name, {**SMALL, "num_classes": 3})
    with torch.device("meta"):
        model = build.build(config)
        for plan in model.plans:
            tubes = {t.name: torch.empty(2, *t.shape, dtype=torch.uint8) for t in plan.tubes}
            z = model.embed(tubes, torch.tensor([True, False]))
            assert (z.shape, z.dtype) == ((2, model.dim), torch.float32)
            assert model(tubes).shape == (2, 3)


@pytest.mark.usefixtures("shrunk")
@pytest.mark.parametrize("name", ["tubevit-tiny", "vivit-tiny-fe", "clip", "dualpath-b16"])
def test_a_head_for_each_dataset(name):
    model = small(name, num_classes={"actions": 5, "objects": 2})
    perturb(model)
    tubes = random_tubes(model.plan)
    actions, objects = model(tubes, dataset="actions"), model(tubes, dataset="objects")
    assert (actions.shape, objects.shape) == ((2, 5), (2, 2))
    objects.sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith("head.actions."))
    with pytest.raises(
        ValueError, match="dataset = None: the model has heads for actions, objects; name one"
    ):
        model(tubes)
    with pytest.raises(ValueError, match="dataset = 'actions': the model has one head, for all"):
        small(name)(tubes, dataset="actions")


@pytest.mark.usefixtures("shrunk")
@pytest.mark.parametrize("name", ["tubevit-tiny", "tubevit-tiny-s2d", "gated-tiny"])
def test_joint_training_an_image_teaches_neither_video_tubes_nor_the_head_of_videos(name):
    model = small(name, num_classes={"videos": 5, "images": 2})
    perturb(model)
    assert model.image_plan is not None
    model(random_tubes(model.image_plan), dataset="images").square().sum().backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    video_tubes = ("tube_8x8x8", "tube_16x4x4", "tube_4x12x12")
    assert without == {
        n for n, _ in model.named_parameters() if n.startswith("head.videos.") or n.endswith(video_tubes)
    }


@pytest.mark.usefixtures("shrunk")
@pytest.mark.parametrize("name", COMPUTED)
def test_bfloat16_autocast_stays_close_and_gives_float32(name):
    model, tubes = awake(name)
    with torch.no_grad():
        exact = model.embed(tubes)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, logits = model.embed(tubes), model(tubes)
    assert rounded.dtype == logits.dtype == torch.float32
    assert (rounded - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("name", models.names())
def test_plan_on_frames_wider_than_high_and_the_reverse(name):
    wide, high = models.plan(name, size=(64, 96)), models.plan(name, size=(96, 64))
    assert wide.tokens == high.tokens
    assert [t.grid[1:] for t in wide.tubes] == [t.grid[:0:-1] for t in high.tubes]


def test_golden_plans():
    b16 = models.plan("tubevit-b16")
    assert [tube.tokens for tube in b16.tubes] == [98, 147, 98, 196]
    assert b16.bytes_per_clip == 583_296
    assert [models.plan("tubevit-l16", frames=n).tokens for n in (32, 64, 128)] == [539, 1176, 2499]
    gated = models.plan("gated-b16")
    assert gated.bytes_per_clip == 1_636_992
    assert len(gated.tubes) == 4
    assert gated.contains(b16)
    assert gated.contains(models.plan("clip"))
    large = models.plan("gated-l14")
    assert len(large.tubes) == 5
    assert large.contains(models.plan("clip", clip=ClipConfig(arch="ViT-L-14-336")))
    still = b16.image()
    assert still is not None
    assert still.tokens == 196


def test_plans_need_no_torch():
    code = (
        "import sys, models; models.names(); models.plan('gated-b16', frames=64, size=(192, 256));"
        "models.plan('clip', clip=models.ClipConfig(arch='ViT-H-14'));"
        "assert not {'torch', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_seed_fixes_the_weights_and_the_callers_random_state_is_left_alone():
    options = {**SMALL, "clip": ClipConfig(arch="ViT-S-32-alt")}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = models.create("gated-tiny", seed=3, **options).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again = models.create("gated-tiny", seed=3, **options).state_dict()
    other = models.create("gated-tiny", seed=4, **options).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "trunk.tokenizer.weight.tube_8x8x8"
    assert not torch.equal(first[name], other[name])


def test_no_head_no_logits():
    model = models.create("tubevit-tiny", **SMALL)
    with pytest.raises(ValueError, match=r"model\.num_classes = None: .*set num_classes"):
        model(random_tubes(model.plan))


def test_describe_counts_without_computing():
    summary = models.describe("tubevit-b16", num_classes=400)
    assert (summary.tokens, summary.bytes_per_clip, summary.dim) == (539, 583_296, 768)
    assert summary.parameters == summary.trainable == 88_746_241 + 400 * 769
    # 12 blocks of 12 N D^2 + 2 N^2 D multiplications, and the tubes; two operations each.
    tokenizer = sum(t.tokens * t.bytes_per_clip // t.tokens for t in models.plan("tubevit-b16").tubes) * 768
    trunk = 12 * (12 * 539 * 768**2 + 2 * 539**2 * 768)
    assert summary.gflops_per_view == pytest.approx(2 * (trunk + tokenizer) / 1e9, rel=1e-3)
    clip = models.describe("clip")
    assert (clip.parameters, clip.trainable, clip.dim) == (86_192_640, 0, 512)
    gated = models.describe("gated-b16")
    assert gated.parameters - gated.trainable == 86_192_640


CLIP = ClipConfig()
TUBE = models.TubeConfig(kernel=(2, 16, 16), stride=(2, 16, 16))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tubevit-b61", {}, "model.name = 'tubevit-b61': no such model; did you mean 'tubevit-b16'?"),
        ("qq", {}, "model.name = 'qq': no such model; choose one of aim-b16, aim-l14, clip"),
        ("tubevit-b16", {"frames": 0}, "frames = 0: must be a positive integer"),
        ("tubevit-b16", {"frames": 16}, "frames = 16: the model's tubes need at least 20 frames"),
        (
            "tubevit-b16",
            {"size": (224, 16)},
            "size = (224, 16): the model's tubes need at least 28x28 pixels",
        ),
        ("clip", {"size": (224, 15)}, "size = (224, 15): smaller than one 16x16 CLIP patch"),
        ("clip", {"size": 224}, "size = 224: must be (height, width) in pixels"),
        ("clip", {"filter": "lanczos"}, "filter = 'lanczos': choose one of area, bicubic, bilinear"),
        ("tubevit-b16", {"clip": CLIP}, "tubevit-b16 has no CLIP tower; leave it out"),
        ("clip", {"adapter_layers": (3,)}, "model.adapter_layers = (3,): clip has no adapters"),
        (
            "gated-b16",
            {"adapter_layers": (3, 12)},
            "model.adapter_layers = (3, 12): must be different blocks out of 0..11",
        ),
        ("gated-b16", {"adapter_layers": ()}, "at least one"),
        ("gated-b16", {"num_classes": 0}, "model.num_classes = 0: must be a positive integer"),
        (
            "clip",
            {"clip": ClipConfig(arch="ViT-B-17")},
            "model.clip.arch = 'ViT-B-17': not an open_clip ViT; did you mean 'ViT-B-16'?",
        ),
        ("clip", {"framez": 3}, "model.framez = 3: no such setting; did you mean 'frames'?"),
        ("clip", {"tubes": (TUBE,)}, "clip has no tubes of its own; leave it out"),
        ("tubevit-tiny", {"tubes": ()}, "model.tubes = (): name at least one"),
        ("vivit-tiny", {"tubes": (TUBE, TUBE)}, "a ViViT has one kind of tubelet"),
        (
            "tubevit-b16-interpolated",
            {"tubes": (TUBE.model_copy(update={"space_to_depth": (2, 1, 1)}),)},
            "tube_2x16x16: tubevit-b16-interpolated resizes one kernel and has no space_to_depth",
        ),
        (
            "tubevit-tiny",
            {"tubes": (models.TubeConfig(kernel=(2, 4, 4), stride=(10, 5, 5), space_to_depth=(5, 1, 1)),)},
            "space_to_depth (5, 1, 1) does not divide the 192 channels of tubevit-tiny",
        ),
        (
            "grafted-b16",
            {"frozen_layers": 12},
            "model.frozen_layers = 12: must be of 1..11; the others train",
        ),
        ("dualpath-b16", {"frames": 24}, "frames = 24: DualPath takes a multiple of 16 frames"),
        ("dualpath-b16", {"clip": ClipConfig(every=2)}, "model.clip.every = 2: DualPath takes 8 key frames"),
        ("clip", {"probe": True}, "model.probe = True: a probe trains a head; set model.num_classes"),
        ("clip", {"num_classes": {}}, "model.num_classes = {}: name at least one dataset"),
        ("clip", {"num_classes": {"a": 0}}, "model.num_classes.a = 0: must be a positive integer"),
        ("clip", {"clip": ClipConfig(arch="../../x")}, "model.clip.arch = '../../x': not an open_clip ViT"),
    ],
)
def test_bad_settings_are_named_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        models.check(name, **options)
    assert "\n" not in str(caught.value)
