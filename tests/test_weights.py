"""Checkpoints, and CLIP weights from files and tags: strict, in one line, and never unpickled."""

import json
import logging
import pickle
import re

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from models import ClipConfig, weights
from pipeline.plan import Plan

ARCH = "ViT-S-32-alt"
SMALL = {"frames": 20, "size": (64, 96)}


def random_tubes(plan: Plan) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        tube.name: torch.randint(0, 256, (2, *tube.shape), dtype=torch.uint8, generator=generator)
        for tube in plan.tubes
    }


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    return open_clip.create_model(ARCH, pretrained=None).eval()


@pytest.fixture(scope="module")
def reference(theirs, tmp_path_factory) -> torch.Tensor:
    """The embedding that every layout of the same weights must give."""
    path = tmp_path_factory.mktemp("clip") / "reference.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, path)
    return embedding(str(path))


def embedding(pretrained: str) -> torch.Tensor:
    options = {**SMALL, "clip": ClipConfig(arch=ARCH, pretrained=pretrained)}
    models.check("clip", **options)
    model = models.create("clip", **options)
    with torch.no_grad():
        return model.embed(random_tubes(model.plan))


def hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The image tower as `transformers.CLIPModel` names it."""
    out = {"logit_scale": torch.tensor(1.0), "text_model.final_layer_norm.weight": torch.ones(4)}
    for name, tensor in state.items():
        if not name.startswith("visual."):
            continue
        name = name.removeprefix("visual.")
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name)
        if match:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                out[f"vision_model.encoder.layers.{match[1]}.self_attn.{letter}_proj.{match[2]}"] = (
                    part.clone()
                )
            continue
        if name == "proj":
            out["visual_projection.weight"] = tensor.T.contiguous()
            continue
        for ours, other in (
            ("class_embedding", "embeddings.class_embedding"),
            ("conv1.weight", "embeddings.patch_embedding.weight"),
            ("positional_embedding", "embeddings.position_embedding.weight"),
            ("ln_pre", "pre_layrnorm"),
            ("ln_post", "post_layernorm"),
            ("transformer.resblocks", "encoder.layers"),
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("c_fc", "fc1"),
            ("c_proj", "fc2"),
        ):
            name = name.replace(ours, other)
        out[f"vision_model.{name}"] = tensor
    out["vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    return out


def test_round_trip(tmp_path):
    options = {**SMALL, "clip": ClipConfig(arch=ARCH)}
    model = models.create("gated-tiny", num_classes=4, seed=1, adapter_layers=(3, 7), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    weights.save(model, tmp_path / "step")
    assert {path.name for path in (tmp_path / "step").iterdir()} == {"model.safetensors", "config.json"}
    written = json.loads((tmp_path / "step" / "config.json").read_text())
    assert written["plan_digest"] == model.plan.digest
    assert written["model"]["name"] == "gated-tiny"
    assert written["model"]["clip"] == {"arch": ARCH, "pretrained": None, "every": 4}
    options |= {"adapter_layers": (3, 7), "checkpoint": tmp_path / "step"}
    models.check("gated-tiny", **options)
    again = models.create("gated-tiny", **options)
    assert again.config == model.config
    gone = ClipConfig(arch=ARCH, pretrained="gone.safetensors")  # all weights are in the checkpoint
    models.check("gated-tiny", clip=gone, adapter_layers=(3, 7), checkpoint=tmp_path / "step", **SMALL)
    tubes = random_tubes(model.plan)
    with torch.no_grad():
        assert torch.equal(model(tubes), again(tubes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    weights.save(models.create("tubevit-tiny", num_classes=4, seed=1, **SMALL), folder)
    return folder


def test_a_checkpoint_serves_other_frames_and_sizes(saved):
    model = models.create("tubevit-tiny", frames=32, size=(96, 64), checkpoint=saved)
    assert model.plan == models.plan("tubevit-tiny", frames=32, size=(96, 64))
    assert model.config is not None
    assert model.config.num_classes == 4


def test_a_head_for_other_classes_starts_afresh_and_says_so(saved, caplog):
    models.check("tubevit-tiny", num_classes=9, checkpoint=saved, **SMALL)
    with caplog.at_level(logging.WARNING):
        model = models.create("tubevit-tiny", num_classes=9, checkpoint=saved, **SMALL)
    assert "other classes" in caplog.text
    assert model.get_parameter("head.weight").shape == (9, 192)
    held = load_file(saved / "model.safetensors")
    assert torch.equal(model.get_parameter("pool.score.weight"), held["pool.score.weight"])


def test_a_checkpoint_of_another_structure_is_refused(saved):
    with pytest.raises(
        ValueError, match=r"model\.name = 'tubevit-small': checkpoint .* made with 'tubevit-tiny'"
    ):
        models.create("tubevit-small", checkpoint=saved, **SMALL)


@pytest.mark.parametrize("act", [models.create, models.check])
def test_every_misfit_is_named(saved, tmp_path, act):
    state = load_file(saved / "model.safetensors")
    state["pool.score.extra"] = state.pop("pool.score.bias")
    state["trunk.encoder.norm.weight"] = torch.ones(7)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    start = f"model.checkpoint = '{tmp_path}': does not fit the model: "
    with pytest.raises(ValueError, match=re.escape(start)) as caught:
        act("tubevit-tiny", checkpoint=tmp_path, **SMALL)
    for fault in (
        "pool.score.bias is missing",
        "pool.score.extra is unexpected",
        "trunk.encoder.norm.weight is (7,), not (192,)",
    ):
        assert fault in str(caught.value)


@pytest.mark.parametrize("act", [models.create, models.check])
def test_broken_folders(saved, tmp_path, act):
    with pytest.raises(FileNotFoundError, match=r"no config\.json there"):
        act("tubevit-tiny", checkpoint=tmp_path / "nowhere", **SMALL)
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors there"):
        act("tubevit-tiny", checkpoint=tmp_path, **SMALL)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(ValueError, match=r"model\.checkpoint = .*safetensors") as caught:
        act("tubevit-tiny", checkpoint=tmp_path, **SMALL)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad config\.json: model: Field required"):
        act("tubevit-tiny", checkpoint=tmp_path, **SMALL)


def test_clip_layouts(theirs, reference, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    bare = {name.removeprefix("visual."): t for name, t in state.items() if name.startswith("visual.")}
    save_file(bare, tmp_path / "bare.safetensors")
    save_file(hugging_face(state), tmp_path / "hugging_face.safetensors")
    torch.save(hugging_face(state), tmp_path / "hugging_face.bin")
    torch.save(
        {"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 3}, tmp_path / "epoch_3.pt"
    )
    for name in ("bare.safetensors", "hugging_face.safetensors", "hugging_face.bin", "epoch_3.pt"):
        assert torch.equal(embedding(str(tmp_path / name)), reference), name


def test_half_precision_files_give_float32_models(theirs, reference, tmp_path):
    save_file(
        {n: t.half().contiguous() for n, t in theirs.state_dict().items()}, tmp_path / "half.safetensors"
    )
    got = embedding(str(tmp_path / "half.safetensors"))
    assert got.dtype == torch.float32
    assert (got - reference).norm() < 0.01 * reference.norm()


@pytest.mark.parametrize("act", [models.create, models.check])
@pytest.mark.parametrize("layout", ["open_clip", "hugging_face"])
def test_misfits_of_clip_files_are_named(theirs, tmp_path, act, layout):
    state = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    if layout == "hugging_face":
        state = hugging_face(state)
    lost = {
        "open_clip": "visual.transformer.resblocks.0.mlp.c_fc.bias",
        "hugging_face": "vision_model.encoder.layers.0.mlp.fc1.bias",
    }
    del state[lost[layout]]
    path = tmp_path / "clip.safetensors"
    save_file(state, path)
    clip = ClipConfig(arch=ARCH, pretrained=str(path))
    with pytest.raises(
        ValueError, match=r"model\.clip\.pretrained = .*: blocks\.0\.mlp\.up\.bias is missing$"
    ):
        act("clip", clip=clip, **SMALL)
    with pytest.raises(ValueError, match=rf"pretrained = '{path}': does not fit the model: "):
        act("clip", clip=ClipConfig(arch="ViT-M-32", pretrained=str(path)), **SMALL)


@pytest.mark.parametrize("act", [models.create, models.check])
def test_bad_clip_sources(tmp_path, act):
    def refused(pretrained: str, arch: str = "ViT-B-32") -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            act("clip", clip=ClipConfig(arch=arch, pretrained=pretrained), **SMALL)
        message = str(caught.value)
        assert message.startswith(f"model.clip.pretrained = {pretrained!r}: ")
        assert "\n" not in message
        return message

    assert "did you mean 'laion2b_s34b_b79k'?" in refused("laion2b_s34b_b79")
    assert "set model.clip.arch to 'ViT-B-32-quickgelu'" in refused("openai")
    assert "no such file" in refused(str(tmp_path / "none.safetensors"))
    assert "no such file" in refused("none.pt")
    assert "(none)" in refused("openai", arch="ViT-S-16")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    assert "not readable as plain tensors" in refused(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "owned").exists()
    torch.save({"model": Evil()}, tmp_path / "evil.bin")
    assert "convert it to safetensors" in refused(str(tmp_path / "evil.bin"))
    assert not (tmp_path / "owned").exists()
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    assert "no CLIP image tower in there" in refused(str(tmp_path / "other.safetensors"))
    (tmp_path / "text.safetensors").write_text("hello there")
    assert "not a safetensors file" in refused(str(tmp_path / "text.safetensors"))


def test_tags_load_through_open_clip(monkeypatch):
    arch, tag = "ViT-B-32", "laion2b_s34b_b79k"
    downloaded = open_clip.create_model(arch, pretrained=None)
    asked = []

    def fake(name, pretrained, weights_only):
        asked.append((name, pretrained, weights_only))
        return downloaded

    monkeypatch.setattr(open_clip, "create_model", fake)
    model = models.create("clip", clip=ClipConfig(arch=arch, pretrained=tag), **SMALL)
    assert asked == [(arch, tag, True)]
    assert torch.equal(model.get_parameter("proj"), downloaded.get_parameter("visual.proj"))


def test_a_failed_download_is_an_error_with_remedies(monkeypatch):
    def fail(name, pretrained, weights_only):
        raise RuntimeError("Failed to download weights\nat great length")

    monkeypatch.setattr(open_clip, "create_model", fail)
    clip = ClipConfig(arch="ViT-B-32", pretrained="laion2b_s34b_b79k")
    models.check("clip", clip=clip, **SMALL)  # the tag exists; nothing is fetched
    with pytest.raises(ValueError, match=r"\(Failed to download weights\); give a local .* null for random"):
        models.create("clip", clip=clip, **SMALL)


def test_identity_follows_the_files(saved, tmp_path):
    path = tmp_path / "clip.safetensors"
    path.write_bytes(b"one")
    clip = ClipConfig(pretrained=str(path))
    one = weights.identity("clip", clip=clip)
    path.write_bytes(b"two")
    assert weights.identity("clip", clip=clip) != one
    assert one.startswith("sha256:")
    assert weights.identity("clip", clip=ClipConfig(pretrained="openai")) == "open_clip:ViT-B-16/openai"
    assert weights.identity("gated-b16") == "random"
    assert weights.identity("tubevit-tiny", checkpoint=saved).startswith("sha256:")
