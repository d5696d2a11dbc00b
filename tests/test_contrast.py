"""The contrastive loss is CLIP's, the same on any number of processes, and makes texts find clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_shards
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from training import by_torchrun, part, refused, trained

import models
from jobs import contrast
from jobs.contrast import CaptionContrast, ClassContrast, Texts
from jobs.processes import processes
from models import ClipConfig
from models.text import TextEncoder, similarity, text_encoder
from pipeline.batches import to_torch
from pipeline.shards import ShardReader

TEMPERATURE = 0.2
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    with processes():
        yield


def vectors(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def numbered(texts_NE: Tensor) -> Any:
    """In place of a text tower."""
    return lambda numbers: texts_NE[torch.tensor(numbers)]


def test_captions_that_all_differ_give_open_clips_loss(alone: None) -> None:
    """Two datasets, unnormalised embeddings; the loss and its gradient."""
    z_BE, t_NE = vectors(8).requires_grad_(), vectors(8, 1)
    loss = CaptionContrast(numbered(t_NE), TEMPERATURE)
    ours = loss(z_BE.split(5), [part(captions=[0, 1, 2, 3, 4]), part(captions=[5, 6, 7])])
    (gradient,) = torch.autograd.grad(ours, z_BE)
    normal = functional.normalize(z_BE, dim=1), functional.normalize(t_NE, dim=1)
    theirs = ClipLoss()(*normal, torch.tensor(1 / TEMPERATURE))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs, z_BE)[0], rtol=1e-4, atol=1e-6)


def test_clips_of_one_caption_are_right_for_each_other(alone: None) -> None:
    z_BE, t_NE = vectors(3), vectors(2, 1)
    found = CaptionContrast(numbered(t_NE), TEMPERATURE)([z_BE], [part(captions=[0, 1, 0])])
    cosines = similarity(z_BE, t_NE[[0, 1, 0]]) / TEMPERATURE
    clips, texts = cosines.log_softmax(1), cosines.log_softmax(0)
    right = [[0, 2], [1], [0, 2]]
    clip_loss = -sum(clips[k, right[k]].mean() for k in range(3)) / 3
    text_loss = -sum(texts[right[k], k].mean() for k in range(3)) / 3
    torch.testing.assert_close(found, (clip_loss + text_loss) / 2)


def test_a_mixed_clip_is_of_both_captions(alone: None) -> None:
    z_BE, t_NE = vectors(4), vectors(4, 1)
    mixed = part(captions=[0, 1, 2, 3], partners=[1, 0, 3, 2], shares=[0.7, 0.7, 1.0, 1.0])
    found = CaptionContrast(numbered(t_NE), TEMPERATURE)([z_BE], [mixed])
    cosines = similarity(z_BE, t_NE) / TEMPERATURE
    right = torch.eye(4)
    right[:2, :2] = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    both = (right * cosines.log_softmax(1)).sum(1) + (right * cosines.log_softmax(0)).sum(0)
    torch.testing.assert_close(found, -both.mean() / 2)


def test_classes_are_told_apart_by_their_names() -> None:
    z_BE, texts = vectors(4), {"clips": functional.normalize(vectors(3, 1), dim=1)}
    loss, targets = ClassContrast(texts, TEMPERATURE), torch.tensor([0, 2, 2, 1])
    logits = similarity(z_BE, texts["clips"]) / TEMPERATURE
    torch.testing.assert_close(
        loss([z_BE], [part(targets.tolist())]), functional.cross_entropy(logits, targets)
    )
    mixed = part(targets.tolist(), partners=[1, 0, 3, 2], shares=[0.7, 0.7, 1.0, 1.0])
    each = torch.stack(
        [functional.cross_entropy(logits, t, reduction="none") for t in (targets, targets[[1, 0, 3, 2]])]
    )
    share = torch.tensor([0.7, 0.7, 1.0, 1.0])
    torch.testing.assert_close(loss([z_BE], [mixed]), (share * each[0] + (1 - share) * each[1]).mean())
    several = part([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    expected = -logits.log_softmax(1)
    expected = (expected[0, 0] + expected[1, 1:].mean()) / 2
    torch.testing.assert_close(loss([z_BE[:2]], [several]), expected)


def test_low_precision_around_it_changes_nothing() -> None:
    z_BE, texts = vectors(4), {"clips": functional.normalize(vectors(3, 1), dim=1)}
    loss, one = ClassContrast(texts, 0.01), part([0, 2, 2, 1])
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss([z_BE], [one])
    assert torch.equal(inside, loss([z_BE], [one]))


def test_a_caption_is_embedded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = text_encoder(ClipConfig(arch=tiny_shards.tower(tmp_path, 24)))
    asked: list[str] = []
    encode = TextEncoder.encode

    def counted(self: TextEncoder, texts: Sequence[str]) -> Tensor:
        asked.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    monkeypatch.setattr(contrast, "BLOCK", 2)
    names = list("abcde")
    texts = Texts(encoder, names)
    first, again = texts([4, 0, 4]), texts([0, 1, 4])
    assert asked == ["e", "a", "b"]
    torch.testing.assert_close(first, encode(encoder, ["e", "a", "e"]))
    assert torch.equal(first[1], again[0])
    alone = Texts(encoder, names)([0])  # whatever else was asked for
    assert torch.equal(alone[0], first[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clips with captions, of which some are the same."""
    texts = [
        f"something {tiny_shards.COLOURS[k % 3]}" + ("" if k % 2 else f", number {k}") for k in range(40)
    ]
    tiny_shards.write(tmp_path / "clips", 40, captions=texts)
    tiny_shards.write(tmp_path / "stills", 24, still=True, captions=texts[:24])
    return tmp_path


def spec(folder: Path, wanted: dict[str, Any], **recipe: Any) -> dict[str, Any]:
    values = tiny_shards.spec(folder)
    tower = {"arch": tiny_shards.tower(folder, 96)}
    return {
        **values,
        "checkpoints": {},
        "recipe": {**values["recipe"], "contrast": {"clip": tower, **wanted}, **recipe},
    }


def test_texts_find_what_was_trained_against_their_names(folder: Path) -> None:
    wanted = {"temperature": 0.1, "prompts": ["a {} clip", "{}"]}
    rows, _ = trained(spec(folder, wanted, steps=60))
    losses = [float(row["loss/contrast"]) for row in rows if "loss/contrast" in row]
    assert losses[0] > 2 * losses[-1]
    model = models.create(
        tiny_shards.NAME, frames=4, size=(8, 12), tubes=tiny_shards.TUBES, checkpoint=folder / "run" / "model"
    )
    encoder = text_encoder(ClipConfig(arch=tiny_shards.tower(folder, 96)))
    texts_CE = encoder.zero_shot(sorted(tiny_shards.COLOURS), ["a {} clip", "{}"])
    reader = ShardReader(str(folder / "clips" / "0000.arrow"))
    with torch.no_grad():
        found = similarity(model.embed(to_torch(reader.rows(0, 8), reader.plan)), texts_CE).argmax(1)
    names = [sorted(tiny_shards.COLOURS)[k] for k in found]
    assert names == [tiny_shards.COLOURS[k % 3] for k in range(8)]


def test_two_processes_have_the_gradient_of_one(folder: Path) -> None:
    """After one step of SGD, at a rate of 1, weights differ by what gradients do."""
    data = {name: {"shards": str(folder / name)} for name in ("clips", "stills")}
    values = spec(
        folder, {"against": "captions", "temperature": 0.1, "weight": 3.0},
        steps=1, batch=32, accumulate=2, augment={"mixup": 0.5},
        optimizer={"name": "sgd", "learning_rate": 1.0, "clip_norm": None},
    )  # fmt: skip
    values |= {"data": data, "resources": {"workers": [1, 2]}}
    one, state = trained(values, "one")
    two = by_torchrun(values, folder, "two", 2)
    for name in ("loss", "loss/contrast", "gradient"):
        assert one[-1][name] == pytest.approx(two[-1][name], rel=1e-5), name
    other = load_file(folder / "two" / "model" / "model.safetensors")
    for name, x in state.items():
        torch.testing.assert_close(other[name], x, rtol=0, atol=1e-5, msg=name)


def test_what_does_not_fit_is_told_before_anything_starts(folder: Path) -> None:
    narrow = refused(spec(folder, {"clip": {"arch": tiny_shards.tower(folder, 24)}}))
    assert "its texts have 24 channels, the embedding of tubevit-nano has 96" in narrow
    assert refused(spec(folder, {"clip": None})).startswith(
        "recipe.contrast.clip: missing; tubevit-nano has no CLIP"
    )
    line = refused(spec(folder, {"clip": {"arch": "ViT-B-16", "pretrained": "nowhere"}}))
    assert line.startswith("recipe.contrast.clip.pretrained = 'nowhere': neither a file nor")
    assert "'a photo': the name of a class goes where {} stands" in refused(
        spec(folder, {"prompts": ["a photo"]})
    )
    assert "leave them out" in refused(spec(folder, {"prompts": ["{}"], "against": "captions"}))
    tiny_shards.write(folder / "silent", 8, captions=["a", None, "b", "", "c", "d", "e", "f"])
    line = refused(
        {**spec(folder, {"against": "captions"}), "data": {"a": {"shards": str(folder / "silent")}}}
    )
    assert "2 of 8 clips, the first of them silent1.mp4#0-9/0, have no caption" in line
