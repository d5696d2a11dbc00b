"""Image ViTs that video models start from: timm's, torchvision's, Hugging Face's and CLIP's layouts."""

import json
import re
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file

import models
from models import image_weights
from models.config import InitConfig
from models.image_weights import tube_kernel
from models.tokenizer import TubeTokenizer
from models.tubevit import TubeTrunk, inflate
from models.vivit import ViViT
from models.vivit import inflate as inflate_vivit
from pipeline.plan import Canvas, Plan, Tube

DIM, LAYERS, HEADS, SIDE = 48, 2, 3, 64
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


def timm_vit() -> torch.nn.Module:
    return timm.models.vision_transformer.VisionTransformer(
        img_size=SIDE, patch_size=16, embed_dim=DIM, depth=LAYERS, num_heads=HEADS, num_classes=5
    )


def torchvision_vit() -> torch.nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=SIDE, patch_size=16, num_layers=LAYERS, num_heads=HEADS, hidden_dim=DIM, mlp_dim=4 * DIM,
        num_classes=5,
    )  # fmt: skip


def hugging_face_vit() -> torch.nn.Module:
    config = transformers.ViTConfig(
        hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * DIM,
        image_size=SIDE, patch_size=16, layer_norm_eps=1e-6,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def class_token(theirs: Any, pixels: torch.Tensor) -> torch.Tensor:
    if isinstance(theirs, torchvision.models.VisionTransformer):
        x = torch.cat([theirs.class_token.expand(len(pixels), -1, -1), theirs._process_input(pixels)], dim=1)
        return theirs.encoder(x)[:, 0]
    if isinstance(theirs, transformers.ViTForImageClassification):
        return theirs.vit(pixels).last_hidden_state[:, 0]
    return theirs.forward_features(pixels)[:, 0]


def frame_plan(side: int = SIDE) -> Plan:
    canvas = Canvas(frames=1, height_px=side, width_px=side)
    tube = Tube(name="tube_1x16x16", kernel=(1, 16, 16), stride=(1, 16, 16), canvas=canvas)
    return Plan(tubes=(tube,))


def frames(batch: int = 2) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The same uint8 frames as tubes, and normalised for `theirs` (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    frames_BHWC = torch.randint(0, 256, (batch, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    n = SIDE // 16
    grid = frames_BHWC.reshape(batch, n, 16, n, 16, 3).permute(0, 1, 3, 2, 4, 5)
    pixels = (frames_BHWC.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return {"tube_1x16x16": grid[:, None, :, :, None].contiguous()}, pixels.permute(0, 3, 1, 2)


def transformers_4(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ViT's state as transformers 4 named it, and the files on Hugging Face's hub still do."""
    out = {}
    for name, tensor in state.items():
        for new, old in (
            ("vit.layers.", "vit.encoder.layer."), ("attention.q_proj", "attention.attention.query"),
            ("attention.k_proj", "attention.attention.key"), ("mlp.fc1", "intermediate.dense"),
            ("attention.v_proj", "attention.attention.value"), ("mlp.fc2", "output.dense"),
            ("attention.o_proj", "attention.output.dense"),
        ):  # fmt: skip
            name = name.replace(new, old) if name.startswith("vit.") else name
        out[name] = tensor
    return out


@pytest.mark.parametrize("make", [timm_vit, torchvision_vit, hugging_face_vit])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_vivit_of_one_frame_is_the_image_vit(make, suffix, tmp_path):
    torch.manual_seed(0)
    theirs = make().eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.05 * torch.randn_like(p))  # biases and tokens that start at zero would hide mistakes
    path, state = tmp_path / f"vit{suffix}", {k: v.contiguous() for k, v in theirs.state_dict().items()}
    if suffix == ".pth":
        torch.save(transformers_4(state), path)
    else:
        save_file(state, path)
    image = image_weights.read(InitConfig(weights=str(path), mean=MEAN, std=STD))
    model = ViViT(frame_plan(), DIM, LAYERS, HEADS, variant="joint", activation="gelu").eval()
    inflate_vivit(model, image, "central")
    tubes, pixels = frames()
    with torch.no_grad():
        torch.testing.assert_close(model.embed(tubes), class_token(theirs, pixels), atol=2e-5, rtol=1e-4)


def test_a_trunk_takes_the_patch_kernel_unchanged_and_all_blocks(tmp_path):
    torch.manual_seed(0)
    theirs: Any = timm_vit().eval()
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    init = InitConfig(weights=str(tmp_path / "vit.safetensors"), mean=MEAN, std=STD)
    trunk = TubeTrunk(frame_plan(), DIM, LAYERS, HEADS).eval()
    inflate(trunk, image_weights.read(init), "central")
    tubes, pixels = frames()
    with torch.no_grad():
        torch.testing.assert_close(trunk.tokenizer(tubes), theirs.patch_embed(pixels), atol=1e-5, rtol=1e-4)
        x = torch.randn(2, 7, DIM)
        torch.testing.assert_close(trunk.encoder(x), theirs.norm(theirs.blocks(x)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernels", ["central", "inflate"])
@pytest.mark.parametrize("kernel", [(8, 8, 8), (16, 4, 4), (4, 12, 12), (1, 16, 16)])
def test_every_tube_gives_on_a_still_flat_picture_what_the_image_kernel_gives(kernel, kernels):
    image = torch.randn(6, 1, 1, 3).expand(6, 16, 16, 3).reshape(6, -1)
    tube = tube_kernel(image, kernel, kernels)
    flat = torch.tensor([0.3, -1.0, 2.0])
    a = image.unflatten(1, (-1, 3)).sum(1) @ flat
    b = tube.unflatten(1, (-1, 3)).sum(1) @ flat
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)
    frames_used = (tube.unflatten(1, (*kernel, 3)).abs().sum((0, 2, 3, 4)) > 0).tolist()
    central = [t == kernel[0] // 2 for t in range(kernel[0])]
    assert frames_used == (central if kernels == "central" else [True] * kernel[0])


def test_a_patch_sized_2d_tube_takes_the_image_kernel_unchanged():
    image = torch.randn(6, 16 * 16 * 3)
    torch.testing.assert_close(tube_kernel(image, (1, 16, 16), "central"), image)


ARCH = "ViT-S-32-alt"


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    import open_clip

    theirs = open_clip.create_model(ARCH, pretrained=None)
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, path)
    return path


def test_tubevit_from_a_clip_tower_takes_its_blocks_and_both_lns(clip_file):
    clip = models.create("clip", clip=models.ClipConfig(arch=ARCH, pretrained=str(clip_file)))
    init = InitConfig(weights=str(clip_file), arch=ARCH, kernels="inflate")
    model = models.create("tubevit-small", init=init)
    for ours, theirs in (
        ("trunk.encoder.blocks.11.mlp.up.weight", "blocks.11.mlp.up.weight"),
        ("trunk.encoder.blocks.0.attention.qkv.bias", "blocks.0.attention.qkv.bias"),
        ("trunk.norm_pre.weight", "norm_pre.weight"),
        ("trunk.encoder.norm.weight", "norm_post.weight"),
    ):
        assert torch.equal(model.get_parameter(ours), clip.get_parameter(theirs))
    plain = models.create("tubevit-small")
    name = "trunk.tokenizer.weight.tube_8x8x8"
    assert not torch.equal(model.get_parameter(name), plain.get_parameter(name))


def test_a_clip_tower_of_other_pixel_statistics_keeps_what_it_sees(tmp_path):
    """Also where its positions, which could take the shift, are left behind."""
    import open_clip

    described = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1},
    }
    arch = tmp_path / "other.json"
    arch.write_text(json.dumps({"model_cfg": described, "preprocess_cfg": {"mean": MEAN, "std": STD}}))
    theirs = open_clip.CLIP(**described).visual
    path = tmp_path / "other.safetensors"
    save_file({f"visual.{k}": v.contiguous() for k, v in theirs.state_dict().items()}, path)
    image = image_weights.read(InitConfig(weights=str(path), arch=str(arch)))
    tubes, pixels = frames()
    tokenizer = TubeTokenizer(frame_plan(), 32)
    tokenizer.load_state_dict({f"{k[6:]}.tube_1x16x16": image[k] for k in ("patch.weight", "patch.bias")})
    with torch.no_grad():
        expected = theirs.conv1(pixels).flatten(2).transpose(1, 2)
        torch.testing.assert_close(tokenizer(tubes), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vivit-tiny", "gated-tiny", "tubevit-tiny"])
def test_weights_of_another_width_are_refused_before_any_is_read(name, clip_file):
    init = InitConfig(weights=str(clip_file), arch=ARCH)
    with pytest.raises(ValueError, match=f"model.init.arch = '{ARCH}': 12 layers of 384 .*but {name} has"):
        models.check(name, init=init)


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        (InitConfig(weights="gone.pth"), FileNotFoundError, "model.init.weights = 'gone.pth': no such file"),
        (
            InitConfig(weights="openai", arch="ViT-S-32-alt"),
            ValueError,
            "model.init.weights = 'openai': neither",
        ),
        (
            InitConfig(weights="x.pt", arch="ViT-S-33"),
            ValueError,
            "model.init.arch = 'ViT-S-33': not an open",
        ),
    ],
)
def test_bad_sources_are_named(init, error, message):
    with pytest.raises(error, match=re.escape(message)):
        models.check("tubevit-small", init=init)


def test_a_file_without_a_vit_is_named(tmp_path):
    path = tmp_path / "else.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="no plain ViT in there .*'conv.weight'.*timm, torchvision"):
        models.create("tubevit-tiny", init=InitConfig(weights=str(path)))


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(timm_vit().state_dict(), path)
    with pytest.raises(ValueError, match="model.init.weights: does not fit the model: .*encoder"):
        models.create("tubevit-tiny", init=InitConfig(weights=str(path)))
