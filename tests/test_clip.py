"""Our CLIP tower against open_clip's, on the same uint8 frames."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clip_samples import clip_plan, normalised, patches, random_frames
from open_clip.model import CLIPVisionCfg, _build_vision_tower, resize_pos_embed
from safetensors.torch import save_file
from torch import nn

import models
from models import clip_layouts, clip_weights, towers
from models.clip import Clip
from models.towers import Tower, tower
from models.weights import fit
from pipeline.plan import Plan


def ours(image_tower: Tower, theirs: nn.Module, plan: Plan) -> Clip:
    clip = Clip(plan, image_tower)
    state = clip_layouts.image(theirs.state_dict(), image_tower, "test")
    fit(clip.state_dict(), state, "test")
    clip.load_state_dict(state)
    return clip


def small(
    size: int | tuple[int, int] = 64, *, quick_gelu: bool = False, **variant
) -> tuple[nn.Module, Tower]:
    """A tiny open_clip tower with random weights for images of `size`, and what we say of it at 64x64."""
    vision = {"patch_size": 16, "width": 32, "layers": 3, "head_width": 16, **variant}
    theirs = _build_vision_tower(24, CLIPVisionCfg(image_size=size, **vision), quick_gelu).eval()
    image_tower = Tower(
        arch="small",
        image_size=64,
        patch=16,
        width=32,
        layers=3,
        heads=32 // vision["head_width"],
        mlp_dim=int(32 * variant.get("mlp_ratio", 4)),
        embed_dim=24,
        activation="quick_gelu" if quick_gelu else "gelu",
        layer_scale=variant.get("ls_init_value"),
        norm_pre=not variant.get("no_ln_pre", False),
        pool=variant.get("pool_type", "tok"),
        pool_then_norm=variant.get("final_ln_after_pool", False),
    )
    return theirs, image_tower


def resized(theirs: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The same tiny tower for another image size, its positions resized by open_clip."""
    other, _ = small(size)
    state = {f"visual.{name}": tensor for name, tensor in theirs.state_dict().items()}
    resize_pos_embed(state, SimpleNamespace(visual=other))
    other.load_state_dict({name.removeprefix("visual."): tensor for name, tensor in state.items()})
    return other


def test_parity_with_encode_image():
    arch = "ViT-S-32-alt"
    theirs: Any = open_clip.create_model(arch, pretrained=None).eval()
    plan = clip_plan(5, (224, 224), 32, every=4)
    frames = random_frames(1, 5, (224, 224))
    with torch.no_grad():
        expected = theirs.encode_image(normalised(frames[:, ::4]))
        clip = ours(tower(arch), theirs, plan)
        got = clip.frames(patches(frames, plan))
        embedding = clip.embed(patches(frames, plan))
    assert got.shape == (1, 2, clip.dim)
    assert (got[0] - expected).abs().max() < 1e-4
    torch.testing.assert_close(embedding, got.mean(1))


@pytest.mark.parametrize("arch", ["ViT-B-16", "ViT-B-32-quickgelu", "ViT-M-16-alt", "ViT-B-16-plus-240"])
def test_parity_of_real_archs(arch):
    config: Any = open_clip.get_model_config(arch)
    quick_gelu = config.get("quick_gelu", False)
    theirs = _build_vision_tower(config["embed_dim"], config["vision_cfg"], quick_gelu).eval()
    size = (config["vision_cfg"]["image_size"],) * 2
    plan = clip_plan(1, size, tower(arch).patch, every=1)
    frames = random_frames(1, 1, size)
    with torch.no_grad():
        expected = theirs(normalised(frames))
        got = ours(tower(arch), theirs, plan).embed(patches(frames, plan))
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, "mlp_ratio": 2.5},
        {"pool_type": "avg", "head_width": 8, "ls_init_value": 0.5},
        {"final_ln_after_pool": True},
    ],
)
def test_parity_of_every_variant(variant, quick_gelu):
    theirs, image_tower = small(quick_gelu=quick_gelu, **variant)
    plan = clip_plan(2, (64, 64), 16, every=1)
    frames = random_frames(2, 2, (64, 64))
    with torch.no_grad():
        expected = theirs(normalised(frames)).unflatten(0, (2, 2))
        got = ours(image_tower, theirs, plan).frames(patches(frames, plan))
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(48, 80), (110, 70), (96, 64), (32, 160)])
def test_parity_on_other_sizes_with_resized_positions(size):
    theirs, image_tower = small()
    plan = clip_plan(1, size, 16, every=1)
    frames = random_frames(2, 1, size)
    with torch.no_grad():
        expected = resized(theirs, size)(normalised(frames))
        got = ours(image_tower, theirs, plan).embed(patches(frames, plan))
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_other_pixel_statistics_are_converted(size):
    mean, std = (0.5, 0.4, 0.6), (0.5, 0.2, 0.3)
    theirs, image_tower = small()
    plan = clip_plan(1, size, 16, every=1)
    clip = ours(image_tower, theirs, plan)
    clip.load_state_dict(clip_weights.renormalised(clip.state_dict(), (mean, std)))
    frames = random_frames(1, 1, size)
    with torch.no_grad():
        expected = resized(theirs, size)(normalised(frames, mean, std))
        assert (clip.embed(patches(frames, plan)) - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_every_supported_arch_fits():
    archs = towers.supported()
    assert {"ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14-CLIPA", "ViT-bigG-14"} <= set(archs)
    configs: dict[str, Any] = {arch: open_clip.get_model_config(arch) for arch in archs}
    different = {json.dumps([c["vision_cfg"], c["embed_dim"]]): arch for arch, c in configs.items()}
    for arch in different.values():
        image_tower = tower(arch)
        with torch.device("meta"):
            theirs: Any = _build_vision_tower(configs[arch]["embed_dim"], configs[arch]["vision_cfg"], False)
            clip = Clip(clip_plan(1, (64, 64), image_tower.patch, every=1), image_tower)
        fit(clip.state_dict(), clip_layouts.image(theirs.state_dict(), image_tower, arch), arch)
        assert parameters(clip) == parameters(theirs), arch
        if image_tower.pool != "map":
            assert image_tower.heads == theirs.transformer.resblocks[0].attn.num_heads, arch


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arch", "count"),
    [
        ("ViT-B-32", 87_849_216),
        ("ViT-B-16", 86_192_640),
        ("ViT-L-14", 303_966_208),
        ("ViT-H-14", 632_076_800),
    ],
)
def test_parameter_counts(arch, count):
    with torch.device("meta"):
        assert parameters(Clip(clip_plan(1, (64, 64), tower(arch).patch, every=1), tower(arch))) == count


SMALL = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 3, "head_width": 16}


def write(path: Path, config: object) -> str:
    path.write_text(json.dumps(config))
    return str(path)


def test_a_tower_from_a_file(tmp_path):
    vision = {**SMALL, "ls_init_value": 0.5, "pool_type": "avg"}
    arch = write(tmp_path / "small.json", {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision})
    theirs, expected = small(quick_gelu=True, ls_init_value=0.5, pool_type="avg")
    assert tower(arch) == replace(expected, arch=arch)
    weights = tmp_path / "small.safetensors"
    save_file({f"visual.{name}": tensor for name, tensor in theirs.state_dict().items()}, weights)
    clip = models.ClipConfig(arch=arch, pretrained=str(weights), every=1)
    models.check("clip", frames=2, size=(64, 64), clip=clip)
    model = models.create("clip", frames=2, size=(64, 64), clip=clip)
    frames = random_frames(1, 2, (64, 64))
    with torch.no_grad():
        got = model.embed(patches(frames, model.plan))
        assert (got - theirs(normalised(frames)).mean(0)).abs().max() < 1e-4


def test_a_file_from_the_hub_states_its_pixels(tmp_path):
    theirs, _ = small()
    mean, std = (0.5, 0.4, 0.6), (0.5, 0.2, 0.3)
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": SMALL},
        "preprocess_cfg": {"mean": mean, "std": std},
    }
    arch = write(tmp_path / "open_clip_config.json", config)
    save_file(
        {f"visual.{n}": tensor for n, tensor in theirs.state_dict().items()}, tmp_path / "s.safetensors"
    )
    clip = models.ClipConfig(arch=arch, pretrained=str(tmp_path / "s.safetensors"), every=1)
    model = models.create("clip", frames=1, size=(64, 64), clip=clip)
    frames = random_frames(1, 1, (64, 64))
    with torch.no_grad():
        got = model.embed(patches(frames, model.plan))
        assert (got - theirs(normalised(frames, mean, std))).abs().max() < 1e-4
    config["preprocess_cfg"] = {"mean": 0.5, "std": std}
    with pytest.raises(
        ValueError, match=r"open_clip_config\.json': mean and std in preprocess_cfg must be three"
    ):
        tower(write(tmp_path / "open_clip_config.json", config))


def test_frozen_and_always_in_eval():
    clip = models.create("clip", size=(64, 96), clip=models.ClipConfig(arch="ViT-S-32-alt"), num_classes=3)
    assert not clip.train().training
    assert not any(module.training for module in clip.modules())
    assert {name for name, p in clip.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


def test_mirrored_is_ignored_because_the_grid_is_its_own_mirror_image():
    clip = models.create("clip", size=(64, 96), clip=models.ClipConfig(arch="ViT-S-32-alt"))
    frames = random_frames(1, 32, (64, 96))
    tubes = patches(frames, clip.plan)
    flipped = {name: x.flip(3, 6) for name, x in tubes.items()}  # n_w and kW
    with torch.no_grad():
        after = clip.embed(flipped, torch.tensor([True]))
        before = clip.embed(patches(np.ascontiguousarray(frames[:, :, :, ::-1]), clip.plan))
    assert torch.equal(after, before)
