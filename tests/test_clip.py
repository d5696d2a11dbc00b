"""Our CLIP tower against open_clip's, on the same uint8 frames. B clips, F frames, H x W pixels."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower, resize_pos_embed
from torch import Tensor, nn

import models
from models import clip_layouts, clip_weights, plans, towers
from models.clip import Clip
from models.towers import Tower, tower
from models.weights import fit
from pipeline.plan import Plan

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def clip_plan(frames: int, size: tuple[int, int], patch: int, every: int) -> Plan:
    return plans.clip(plans.canvas(frames, size, "area"), patch, every)


def random_frames(batch: int, frames: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, frames, *size, 3), dtype=np.uint8)


def patches(frames_BFHWC: np.ndarray, plan: Plan) -> dict[str, Tensor]:
    """The one tube of a CLIP plan, by a reshape: patches lie side by side."""
    (tube,) = plan.tubes
    _, p, _ = tube.kernel
    n_t, rows, columns = tube.grid
    kept = frames_BFHWC[:, tube.origins[0], : rows * p, : columns * p]
    grid = kept.reshape(len(kept), n_t, rows, p, columns, p, 3).transpose(0, 1, 2, 4, 3, 5, 6)
    return {tube.name: torch.from_numpy(np.ascontiguousarray(grid[:, :, :, :, None]))}


def normalised(frames_BFHWC: np.ndarray, mean=MEAN, std=STD) -> Tensor:
    x = (torch.from_numpy(frames_BFHWC).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    return x.permute(0, 1, 4, 2, 3).flatten(0, 1)


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
    clip.load_state_dict(clip_weights.renormalised(clip.state_dict(), mean, std))
    frames = random_frames(1, 1, size)
    with torch.no_grad():
        expected = resized(theirs, size)(normalised(frames, mean, std))
        assert (clip.embed(patches(frames, plan)) - expected).abs().max() < 1e-4


def test_every_plain_arch_fits():
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
        assert image_tower.heads == theirs.transformer.resblocks[0].attn.num_heads


@pytest.mark.parametrize("arch", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "MobileCLIP-B", "ViTamin-S"])
def test_towers_that_are_no_plain_vit_are_refused(arch):
    with pytest.raises(ValueError, match=rf"model\.clip\.arch = '{arch}': unsupported image tower \(it has"):
        tower(arch)


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
