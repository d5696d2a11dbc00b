"""The text tower against open_clip's encode_text, from every layout of its weights."""

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import tokenizer as open_clip_tokenizer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel, SiglipModel

from models import ClipConfig, clip_layouts, text
from models.text import TextEncoder, similarity, text_encoder
from models.weights import fit

ARCH = "ViT-S-32-alt"
TEXTS = ["a man juggling", "a dog, asleep", "", "word " * 100]
VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1}
TEXT: dict[str, Any] = {"width": 32, "heads": 2, "layers": 2}


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(0)
    model = open_clip.create_model(ARCH, pretrained=None).eval()
    with torch.no_grad():
        model.get_parameter("logit_scale").fill_(3.0)
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def written(path: Path, state: dict[str, Tensor]) -> str:
    save_file(state, path)
    return str(path)


def tower_file(folder: Path, **config: Any) -> str:
    path = folder / "tower.json"
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, **config}))
    return str(path)


@pytest.fixture(scope="module")
def encoder(theirs, tmp_path_factory) -> TextEncoder:
    path = written(tmp_path_factory.mktemp("clip") / "clip.safetensors", state_of(theirs))
    return text_encoder(ClipConfig(arch=ARCH, pretrained=path))


def test_parity_with_encode_text(theirs, encoder):
    tokens = open_clip.get_tokenizer(ARCH)(TEXTS)
    with torch.no_grad():
        expected = theirs.encode_text(tokens)
    got = encoder.encode(TEXTS)
    assert got.dtype == torch.float32
    assert got.shape == (4, 256)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert encoder.logit_scale == pytest.approx(20.0855, abs=1e-3)
    assert encoder.logit_bias == 0


def test_zero_shot_is_open_clips(theirs, encoder):
    classes, templates = ["juggling", "sleeping {}", "running"], ["a photo of {}.", "{}, from afar"]
    expected = open_clip.build_zero_shot_classifier(
        theirs, open_clip.get_tokenizer(ARCH), classes, [lambda c, t=t: t.replace("{}", c) for t in templates]
    )
    got = encoder.zero_shot(classes, templates)
    torch.testing.assert_close(got, expected.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(3))


def test_any_number_of_texts(encoder, monkeypatch):
    assert encoder.encode([]).shape == (0, 256)
    expected = encoder.encode(TEXTS)
    monkeypatch.setattr(text, "BATCH", 3)
    torch.testing.assert_close(encoder.encode(TEXTS), expected, rtol=0, atol=1e-5)


def test_similarity_is_the_cosine():
    images, texts = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [5.0, 0.0]])
    root = 0.5**0.5
    torch.testing.assert_close(similarity(images, texts), torch.tensor([[0.0, 1.0], [root, root]]))


def test_frozen_and_always_in_eval(encoder):
    assert not encoder.train().training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(name.startswith("clip.visual") for name, _ in encoder.named_parameters())


def test_mistaken_calls_are_named(encoder):
    with pytest.raises(ValueError, match="texts = 'a dog': must be a list"):
        encoder.encode("a dog")
    with pytest.raises(ValueError, match="classes = 'dog': must be a list"):
        encoder.zero_shot("dog")
    for templates in ("a {}", [], ["a {}", "photo"]):
        with pytest.raises(
            ValueError, match=r"templates = .*: must be a list of texts, each with a \{\} in it"
        ):
            encoder.zero_shot(["dog"], templates)


def test_layouts(theirs, encoder, tmp_path):
    state = state_of(theirs)
    old = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": old, "epoch": 3}, tmp_path / "epoch_3.pt")
    half = {n: t for n, t in state.items() if not n.startswith("visual.") and n != "logit_scale"}
    custom = {f"text.{name}": tensor for name, tensor in half.items()}
    custom |= {name: tensor for name, tensor in state.items() if name not in half}
    custom["logit_scale"] = custom["logit_scale"].reshape(1)
    for path in (str(tmp_path / "epoch_3.pt"), written(tmp_path / "custom.safetensors", custom)):
        again = text_encoder(ClipConfig(arch=ARCH, pretrained=path))
        assert torch.equal(again.encode(TEXTS), encoder.encode(TEXTS)), path
        assert again.logit_scale == encoder.logit_scale


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_parity_with_hugging_face(tmp_path, quick_gelu):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    options = {
        "text_config": {**sizes, "vocab_size": 49408, "hidden_act": "quick_gelu" if quick_gelu else "gelu"},
        "vision_config": {**sizes, "image_size": 32, "patch_size": 16},
        "projection_dim": 24,
    }
    torch.manual_seed(0)
    model: Any = CLIPModel(CLIPModel.config_class(**options)).eval()
    path = written(tmp_path / "hf.safetensors", state_of(model))
    arch = tower_file(tmp_path, quick_gelu=quick_gelu)
    encoder = text_encoder(ClipConfig(arch=arch, pretrained=path))
    tokens = encoder.tokenizer(TEXTS)
    with torch.no_grad():
        hidden = model.text_model(tokens).last_hidden_state
        last = hidden[torch.arange(len(TEXTS)), tokens.argmax(dim=-1)]
        expected = model.text_projection(last)
    torch.testing.assert_close(encoder.encode(TEXTS), expected, rtol=0, atol=1e-5)


def test_siglip_text_of_hugging_face_fits():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    texts = {**sizes, "vocab_size": 50, "max_position_embeddings": 16, "projection_size": 24}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    theirs = SiglipModel(SiglipModel.config_class(text_config=texts, vision_config=vision))
    options: Any = {"context_length": 16, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    siglip: Any = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    tiny = open_clip.CLIPVisionCfg(**VISION)
    ours: Any = open_clip.CustomTextCLIP(
        24, tiny, open_clip.CLIPTextCfg(**options, **siglip), init_logit_bias=-10
    )
    del ours.visual
    state = clip_layouts.text(theirs.state_dict(), "test")
    fit(ours.state_dict(), state, "test")
    ours.load_state_dict(state)
    tokens = torch.randint(0, 50, (3, 16))
    model: Any = theirs.eval()
    with torch.no_grad():
        expected = model.text_model(tokens).pooler_output
        assert (ours.eval().encode_text(tokens) - expected).abs().max() < 1e-3  # its GELU is tanh's


def test_random_weights_follow_the_seed(tmp_path):
    clip = ClipConfig(arch=tower_file(tmp_path))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (text_encoder(clip, seed).encode(TEXTS[:2]) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert (one - other).abs().max() > 1e-3
    assert one.shape == (2, 24)


def test_misfits_are_named(theirs, tmp_path):
    state = state_of(theirs)
    state["transformer.odd"] = state.pop("transformer.resblocks.3.ln_1.bias")
    clip = ClipConfig(arch=ARCH, pretrained=written(tmp_path / "odd.safetensors", state))
    with pytest.raises(
        ValueError, match=r"^model\.clip\.pretrained = .*odd\.safetensors': does not fit"
    ) as caught:
        text_encoder(clip)
    assert "text.transformer.resblocks.3.ln_1.bias is missing" in str(caught.value)
    assert "text.transformer.odd is unexpected" in str(caught.value)
    image = {name: tensor for name, tensor in state_of(theirs).items() if name.startswith("visual.")}
    clip = ClipConfig(arch=ARCH, pretrained=written(tmp_path / "image.safetensors", image))
    with pytest.raises(ValueError, match=r"image\.safetensors': no text tower in there \(keys such as"):
        text_encoder(clip)
    with pytest.raises(ValueError, match="neither a file nor an open_clip tag"):
        text_encoder(ClipConfig(arch=ARCH, pretrained="openai"))


@pytest.mark.parametrize(
    ("text_cfg", "what"),
    [
        (None, "it describes no text tower; add a text_cfg to it"),
        ({**TEXT, "vocab_size": 100}, "text_cfg.vocab_size = 100: CLIP's tokenizer has 49408 tokens"),
        ({**TEXT, "heads": 5}, "its text_cfg makes no text tower ("),
        ({**TEXT, "wide": 5}, "its text_cfg makes no text tower ("),
    ],
)
def test_bad_text_configs(tmp_path, text_cfg, what):
    arch = tower_file(tmp_path, text_cfg=text_cfg)
    with pytest.raises(ValueError, match=re.escape(f"model.clip.arch = '{arch}': ")) as caught:
        text_encoder(ClipConfig(arch=arch))
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cannot_be_fetched(monkeypatch):
    def fail(name, **options):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(open_clip_tokenizer, "HFTokenizer", fail)
    with pytest.raises(
        ValueError,
        match=r"SigLIP': its tokenizer 'timm/ViT-B-16-SigLIP' comes from Hugging Face and "
        r"could not be fetched \(We couldn't connect\); run it once",
    ):
        text_encoder(ClipConfig(arch="ViT-B-16-SigLIP"))


def test_tags_load_through_open_clip(theirs, encoder, monkeypatch):
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda arch: ["some"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda arch, tag: {})
    monkeypatch.setattr(open_clip, "create_model", lambda arch, pretrained, weights_only: theirs)
    again = text_encoder(ClipConfig(arch=ARCH, pretrained="some"))
    assert torch.equal(again.encode(TEXTS), encoder.encode(TEXTS))
