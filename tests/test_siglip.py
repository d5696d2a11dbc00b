"""SigLIP's image towers against timm's, in open_clip's and in Hugging Face's layout."""

from typing import Any

import open_clip
import pytest
import timm
import torch
from clip_samples import clip_plan, normalised, patches, random_frames
from open_clip.model import _build_vision_tower
from timm.layers import GELUTanh, resample_abs_pos_embed
from torch import Tensor, nn
from transformers import SiglipModel, SiglipVisionModel

import models
from models import clip_layouts, clip_weights, plans, towers
from models.clip import Clip
from models.gated import Gated
from models.towers import Tower, tower
from models.tubevit import TubeTrunk
from models.weights import fit
from pipeline.plan import Plan

HALF = (0.5, 0.5, 0.5)


def small(activation: str = "gelu") -> tuple[Any, Tower]:
    """A tiny tower of timm with random weights, biases and norms too, and what we say of it."""
    torch.manual_seed(0)
    theirs = timm.models.VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=32,
        depth=3,
        num_heads=2,
        mlp_ratio=2.5,
        num_classes=0,
        class_token=False,
        global_pool="map",
        act_layer=activation,
    ).eval()
    scramble(theirs)
    image_tower = Tower(
        arch="small",
        image_size=64,
        patch=16,
        width=32,
        layers=3,
        heads=2,
        mlp_dim=80,
        embed_dim=32,
        activation="gelu_tanh" if activation == "gelu_tanh" else "gelu",
        norm_pre=False,
        pool="map",
        eps=1e-6,
    )
    return theirs, image_tower


def scramble(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def ours(image_tower: Tower, state: dict[str, Tensor], plan: Plan) -> Clip:
    clip = Clip(plan, image_tower)
    renamed = clip_weights.renormalised(clip_layouts.image(state, image_tower, "test"), (HALF, HALF))
    fit(clip.state_dict(), renamed, "test")
    clip.load_state_dict(renamed)
    return clip


def visual(theirs: nn.Module) -> dict[str, Tensor]:
    """Its state as in a checkpoint of open_clip's."""
    held = {f"visual.trunk.{name}": tensor for name, tensor in theirs.state_dict().items()}
    return {**held, "logit_bias": torch.tensor(-10.0), "text.ln_final.weight": torch.ones(4)}


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_parity_with_timm(activation):
    theirs, image_tower = small(activation)
    plan = clip_plan(2, (64, 64), 16, every=1)
    frames = random_frames(2, 2, (64, 64))
    clip = ours(image_tower, visual(theirs), plan)
    with torch.no_grad():
        expected = theirs(normalised(frames, HALF, HALF)).unflatten(0, (2, 2))
        got = clip.frames(patches(frames, plan))
        assert (got - expected).abs().max() < 1e-4
        torch.testing.assert_close(clip.embed(patches(frames, plan)), got.mean(1))


@pytest.mark.parametrize("size", [(48, 80), (110, 70), (96, 64)])
def test_parity_on_other_sizes_with_resized_positions(size):
    theirs, image_tower = small()
    plan = clip_plan(1, size, 16, every=1)
    clip = ours(image_tower, visual(theirs), plan)
    grid = [size[0] // 16, size[1] // 16]
    resized = resample_abs_pos_embed(theirs.pos_embed.detach(), grid, num_prefix_tokens=0)
    theirs.patch_embed.strict_img_size = False
    theirs.pos_embed = nn.Parameter(resized)
    frames = random_frames(2, 1, size)
    covered = frames[:, :, : 16 * grid[0], : 16 * grid[1]]
    with torch.no_grad():
        expected = theirs(normalised(covered, HALF, HALF))
        assert (clip.embed(patches(frames, plan)) - expected).abs().max() < 1e-4


def test_works_compiled_and_in_bfloat16():
    theirs, image_tower = small()
    plan = clip_plan(2, (48, 80), 16, every=1)
    clip = ours(image_tower, visual(theirs), plan)
    tubes = patches(random_frames(1, 2, (48, 80)), plan)
    with torch.no_grad():
        expected = clip.embed(tubes)
        with torch.autocast("cpu", torch.bfloat16):
            got = clip.embed(tubes)
        compiled = torch.compile(clip.embed, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(tubes), expected)
    assert got.dtype == torch.float32
    assert (got - expected).norm() < 0.05 * expected.norm()


def archs() -> list[str]:
    return [arch for arch in towers.supported() if "siglip" in arch.lower()]


def test_every_siglip_of_open_clip_is_supported_but_naflex():
    every = [arch for arch in open_clip.list_models() if "siglip" in arch.lower()]
    assert [arch for arch in every if "naflex" not in arch.lower()] == sorted(archs(), key=every.index)
    assert len(archs()) >= 28


def test_the_table_is_timms():
    for name in sorted(towers._SIGLIP):
        with torch.device("meta"):
            theirs: Any = timm.create_model(name, num_classes=0, global_pool="map")
        vision = {"timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
        image_tower = towers._tower(name, {"vision_cfg": vision})
        first = theirs.blocks[0]
        assert theirs.patch_embed.img_size == (image_tower.image_size,) * 2, name
        assert theirs.patch_embed.patch_size == (image_tower.patch,) * 2, name
        assert (len(theirs.blocks), theirs.embed_dim) == (image_tower.layers, image_tower.width), name
        assert first.attn.num_heads == theirs.attn_pool.num_heads == image_tower.heads, name
        assert first.mlp.fc1.out_features == image_tower.mlp_dim, name
        assert {n.eps for n in theirs.modules() if isinstance(n, nn.LayerNorm)} == {image_tower.eps}, name
        act = {"gelu": nn.GELU, "gelu_tanh": GELUTanh}[image_tower.activation]
        for mlp in (first.mlp, theirs.attn_pool.mlp):
            assert type(mlp.act) is act, name
            assert getattr(mlp.act, "approximate", "none") == "none", name


def test_a_real_arch_fits_and_counts():
    arch = "ViT-B-16-SigLIP"
    config: Any = open_clip.get_model_config(arch)
    with torch.device("meta"):
        theirs = _build_vision_tower(768, config["vision_cfg"], False)
        clip = Clip(clip_plan(1, (64, 64), 16, every=1), tower(arch))
    state = {f"visual.{name}": tensor for name, tensor in theirs.state_dict().items()}
    fit(clip.state_dict(), clip_layouts.image(state, tower(arch), arch), arch)
    assert (
        sum(p.numel() for p in clip.parameters()) == sum(p.numel() for p in theirs.parameters()) == 92_884_224
    )


def test_weights_of_siglip_were_trained_on_other_pixels():
    for arch in archs():
        config = models.ClipConfig(arch=arch, pretrained="some.safetensors")
        assert clip_weights._pixels(config) == (HALF, HALF), arch
        assert tower(arch).pixels == (HALF, HALF)


def test_misfits_are_named():
    theirs, image_tower = small()
    clip = Clip(clip_plan(1, (64, 64), 16, every=1), image_tower)
    state = visual(theirs)
    state["visual.trunk.attn_pool.odd"] = state.pop("visual.trunk.attn_pool.kv.bias")
    state["visual.trunk.head.weight"] = torch.ones(2, 32)
    with pytest.raises(ValueError, match=r"^test: does not fit the model: ") as caught:
        fit(clip.state_dict(), clip_layouts.image(state, image_tower, "test"), "test")
    for fault in (
        "head.weight is unexpected",
        "pool.attention.kv.bias is missing",
        "pool.odd is unexpected",
    ):
        assert fault in str(caught.value)


@pytest.mark.parametrize("alone", [False, True])
def test_parity_with_hugging_face(alone):
    _, image_tower = small("gelu_tanh")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    vision = {**sizes, "image_size": 64, "patch_size": 16}
    kind = SiglipVisionModel if alone else SiglipModel
    options = vision if alone else {"vision_config": vision, "text_config": {**sizes, "vocab_size": 50}}
    theirs: Any = kind(kind.config_class(**options)).eval()
    scramble(theirs)
    plan = clip_plan(1, (64, 64), 16, every=1)
    clip = ours(image_tower, theirs.state_dict(), plan)
    frames = random_frames(2, 1, (64, 64))
    with torch.no_grad():
        tower_of_theirs = theirs if alone else theirs.vision_model
        expected = tower_of_theirs(normalised(frames, HALF, HALF)).pooler_output
        assert (clip.embed(patches(frames, plan)) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("images", [False, True])
def test_closed_gates_are_siglip_bit_for_bit(images):
    _, image_tower = small()
    canvas = plans.canvas(20, (64, 96), "area")
    clip_plan = plans.clip(canvas, 16, 8)
    torch.manual_seed(0)
    alone = Clip(clip_plan, image_tower)
    trunk = TubeTrunk(plans.tubes(canvas, plans.TUBEVIT), 48, 2, 2)
    model = Gated(plans.gated(canvas, plans.TUBEVIT, 16, 8), alone, trunk, (1, 2)).eval()
    plan, clip_part = (model.image_plan, alone.image_plan) if images else (model.plan, alone.plan)
    assert plan is not None
    assert clip_part is not None
    tubes = {tube.name: torch.randint(0, 256, (2, *tube.shape), dtype=torch.uint8) for tube in plan.tubes}
    with torch.no_grad():
        expected = alone.embed(plan.take(tubes, clip_part))
        assert torch.equal(model.embed(tubes), expected)
        for name, parameter in model.named_parameters():
            if "gate" in name:
                parameter.fill_(0.5)
        assert (model.embed(tubes) - expected).abs().max() > 1e-3


def test_created_by_name():
    clip = models.ClipConfig(arch="ViT-B-16-SigLIP", every=8)
    summary = models.describe("gated-tiny", size=(64, 96), frames=20, clip=clip)
    assert summary.dim == 768
    models.check("clip", size=(64, 96), clip=clip)
