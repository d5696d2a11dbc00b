"""`kind: probe` with texts: classes and videos that are found by words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_embeddings
import torch
from tiny_embeddings import clusters, labels, probed, splits

from models.config import ClipConfig
from models.text import text_encoder
from pipeline.errors import SpecError

CPU = torch.device("cpu")


class Worded:
    """Embeddings that are those of their captions and classes, by a tiny CLIP with random weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = {"width": 32, "heads": 2, "layers": 2}
        vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1}
        tower = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
        (folder / "tower.json").write_text(json.dumps(tower))
        self.clip = {"arch": str(folder / "tower.json")}
        self.encoder = text_encoder(ClipConfig(**self.clip), seed=3)

    def write(self, prompts: list[str], **columns: Any) -> None:
        x = self.encoder.encode(prompts).numpy()
        model = {"name": "clip", "clip": self.clip, "seed": 3}
        tiny_embeddings.write(self.folder / "embedded", 7 * x, model=model, **columns)


@pytest.fixture
def worded(tmp_path: Path) -> Worded:
    return Worded(tmp_path)


def test_texts_find_what_they_name(worded: Worded) -> None:
    classes = [("train_in", "bridge up", "nothing")[k % 3] for k in range(12)]
    prompts = [f"a video of {name.replace('_', ' ')}." for name in classes]
    worded.write(prompts, labels=[[name] for name in classes], split=["train"] * 6 + ["test"] * 6)
    found = probed(worded.folder, text={})
    assert found["judges"]["zero-shot"]["top1"] == 1.0
    assert list(found["recall"]) == ["same label"]  # without captions
    (warning,) = found["notes"]
    assert warning.startswith("WARNING: the CLIP tower is randomly initialised")
    other = probed(worded.folder, text={"prompts": ["{}"]}, output={"path": str(worded.folder / "other")})
    assert other["judges"]["zero-shot"]["calibration_error"] != pytest.approx(
        found["judges"]["zero-shot"]["calibration_error"]
    )


def test_captions_and_videos_find_each_other(worded: Worded) -> None:
    """Of nine test videos three have one caption, two were given each other's, and one has none."""
    said = ["a cat", "a cat", "a cat", "two dogs", "rain", "a house", "the sea", "the moon", "none"]
    worded.write(
        ["x"] * 4 + said, labels=labels(13, 2), split=["train"] * 4 + ["test"] * 9,
        caption=[None] * 4 + said[:5] + ["the sea", "a house", "the moon", None],
    )  # fmt: skip
    found = probed(worded.folder, text={}, recall=[1, 8])["recall"]
    assert found["text to video"] == {"1": pytest.approx(4 / 6), "8": 1.0}
    assert found["video to text"] == {"1": pytest.approx(6 / 8), "8": 1.0}


def test_texts_of_another_space_are_refused(worded: Worded) -> None:
    def refused(**model: Any) -> str:
        model = {"name": "clip", "clip": worded.clip, **model}
        folder, given = worded.folder / "embedded", {"labels": labels(12, 2), "split": splits(12)}
        tiny_embeddings.write(folder, clusters(12, 2, noise=0.1), model=model, **given)
        with pytest.raises(SpecError) as caught:
            probed(worded.folder, text={})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "text: the embeddings have 16 channels, those of" in refused()
    assert "text tower 24; leave text out" in refused()
    assert "text.pretrained: missing; the embeddings are from /trained" in refused(checkpoint="/trained")
    moved = {**worded.clip, "pretrained": "/gone.safetensors"}
    assert "text.pretrained: model.clip.pretrained = '/gone.safetensors': no such file" in refused(clip=moved)
