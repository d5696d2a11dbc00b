"""Image towers as config files describe them: which are taken, and how the others are refused."""

import json
import re
from pathlib import Path

import open_clip
import pytest

import models
from models import towers
from models.towers import tower

SMALL = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 3, "head_width": 16}


def write(path: Path, config: object) -> str:
    path.write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize(
    ("arch", "what"),
    [
        ("RN50", "layers = [3, 4, 6, 3]"),
        ("coca_ViT-B-32", "attentional_pool"),
        ("MobileCLIP-B", "timm_model_name = vit_base_mci_224"),
        ("ViTamin-S", "timm_model_name = vitamin_small_224"),
        ("PE-Core-B-16", "timm_model_name = vit_pe_core_base_patch16_224"),
        ("EVA02-B-16", "timm_model_name = eva02_base_patch16_clip_224"),
    ],
)
def test_other_towers_are_refused(arch, what):
    start = f"model.clip.arch = '{arch}': unsupported image tower (it has "
    with pytest.raises(ValueError, match=re.escape(start)) as caught:
        tower(arch)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_arch_is_a_tower_or_refused_in_a_line():
    shipped = {path.stem for path in towers._configs().glob("*.json")}  # other tests may add some
    for arch in (set(open_clip.list_models()) & shipped) - set(towers.supported()):
        with pytest.raises(
            ValueError, match=r"^model\.clip\.arch = '.*': unsupported image tower \(it has .+\); .+$"
        ):
            tower(arch)


def test_an_edited_file_is_read_again(tmp_path):
    arch = write(tmp_path / "small.json", {"embed_dim": 24, "vision_cfg": SMALL})
    assert tower(arch).layers == 3
    write(tmp_path / "small.json", {"embed_dim": 24, "vision_cfg": {**SMALL, "layers": 2}})
    assert tower(arch).layers == 2


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read (No such file or directory); give an open_clip config file"),
        ("{", "not JSON ("),
        ("\x80", "not JSON ("),
        ("[]", "it has no vision_cfg"),
        ('{"embed_dim": 24}', "it has no vision_cfg"),
        (json.dumps({"vision_cfg": SMALL}), "it has embed_dim = None"),
        (json.dumps({"embed_dim": 24, "vision_cfg": {**SMALL, "width": 32.5}}), "it has width = 32.5"),
        (json.dumps({"embed_dim": 24, "vision_cfg": {**SMALL, "layers": 0}}), "it has layers = 0"),
        (
            json.dumps({"embed_dim": 24, "vision_cfg": {**SMALL, "head_width": 5}}),
            "width = 32 but head_width = 5",
        ),
        (json.dumps({"embed_dim": 24, "vision_cfg": {**SMALL, "mlp_ratio": "4"}}), "it has mlp_ratio = 4"),
        (
            json.dumps({"embed_dim": 24, "vision_cfg": {**SMALL, "image_size": 8}}),
            "image_size = 8 but patch_size = 16",
        ),
        (json.dumps({"embed_dim": 24, "vision_cfg": {**SMALL, "rope": True}}), "it has rope"),
    ],
)
def test_bad_tower_files(tmp_path, content, what):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(f"model.clip.arch = '{path}': ")) as caught:
        tower(str(path))
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tower_file_has_no_tags(tmp_path):
    arch = write(tmp_path / "small.json", {"embed_dim": 24, "vision_cfg": SMALL})
    with pytest.raises(
        ValueError, match=r"pretrained = 'openai': neither a file nor .*, or give a local file"
    ):
        models.check("clip", clip=models.ClipConfig(arch=arch, pretrained="openai"))
