"""A model that is fine-tuned on labels stays where texts find it, if it is asked to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tiny
import tiny_shards
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from training import part, refused, trained

import models
from jobs.distill import Distillation, distillation
from models import ClipConfig, weights
from models.model import Model
from models.presets import MODELS
from models.pretrained import clip_of
from models.text import similarity, text_encoder
from pipeline.batches import to_torch
from pipeline.shards import ShardReader

pytestmark = pytest.mark.usefixtures("one_thread")
GATED = "gated-nano"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gated model with the smallest TubeViT."""
    monkeypatch.setitem(MODELS, GATED, replace(MODELS["gated-tiny"], dim=96, layers=4, heads=4))


def options(folder: Path) -> Any:
    return {
        "frames": 4, "size": (8, 12), "tubes": tiny_shards.TUBES[:1],
        "clip": ClipConfig(arch=tiny_shards.tower(folder, 24), every=2),
    }  # fmt: skip


def create(name: str, folder: Path, **changed: Any) -> Model:
    wanted = options(folder)
    if name in ("aim-b16", "st-adapter-b16", "clip"):
        del wanted["tubes"]
    return models.create(name, num_classes=3, **wanted, **changed)


def embedded(model: Model, folder: Path) -> tuple[Tensor, Tensor]:
    """What a model, and the CLIP inside it, make of the first clips."""
    reader = ShardReader(str(folder / "clips" / "0000.arrow"))
    tubes = to_torch(reader.rows(0, 8), reader.plan, model.plan)
    with torch.no_grad():
        return model.embed(tubes), clip_of(model).embed(model.plan.take(tubes, clip_of(model).plan))


def test_what_is_fine_tuned_keeps_its_place_among_texts(tmp_path: Path) -> None:
    plan = models.plan(GATED, **options(tmp_path))
    tiny_shards.write(tmp_path / "clips", 24, plan=plan)
    values = tiny_shards.spec(tmp_path)
    wanted = {"name": GATED, "tubes": values["model"]["tubes"][:1]}
    wanted["clip"] = options(tmp_path)["clip"].model_dump()
    values |= {"model": wanted, "data": {"clips": {"shards": str(tmp_path / "clips")}}, "checkpoints": {}}
    texts_NE = text_encoder(options(tmp_path)["clip"]).encode([f"a {k} clip" for k in range(20)])
    cosines, ranks = {}, {}
    for name, distill in (("with", {"weight": 10.0}), ("without", None)):
        recipe = {"steps": 40, "batch": 8, "optimizer": {"learning_rate": 3e-3}, "distill": distill}
        rows, _ = trained({**values, "recipe": recipe}, name)
        assert ("loss/distill" in rows[-1]) == (name == "with")
        assert rows[-1]["accuracy/clips"] == 1.0
        z_BE, plain_BE = embedded(create(GATED, tmp_path, checkpoint=tmp_path / name / "model"), tmp_path)
        cosines[name] = functional.cosine_similarity(z_BE, plain_BE).mean().item()
        best = (similarity(x, texts_NE).argsort(1, descending=True)[:, :5] for x in (z_BE, plain_BE))
        ours, theirs = ([set(row.tolist()) for row in x] for x in best)
        ranks[name] = sum(len(a & b) for a, b in zip(ours, theirs, strict=True)) / 40
    assert cosines["with"] > 0.98 > cosines["without"]
    assert ranks["with"] > 0.8 > ranks["without"]


@pytest.mark.parametrize("name", ["clip", GATED, "grafted-b16", "aim-b16", "st-adapter-b16"])
@pytest.mark.parametrize("image", [False, True])
def test_the_teacher_is_the_clip_inside(name: str, image: bool, tmp_path: Path) -> None:
    model = create(name, tmp_path)
    distill = distillation(model, started_from_checkpoint=False)
    plan = model.image_plan if image else model.plan
    assert plan is not None
    tubes, clip = tiny.random_tubes(plan), clip_of(model)
    expected = clip.embed(plan.take(tubes, clip.plans[image])).detach()
    tiny.wake(model)
    if name == "grafted-b16":  # its upper blocks train, and its teacher does not
        torch.nn.init.normal_(clip.blocks[-1].mlp.down.weight)
        assert not torch.equal(clip.embed(plan.take(tubes, clip.plans[image])), expected)
    assert torch.equal(distill.target(tubes), expected)
    loss = distill([expected], [part([0, 1], tubes=tubes)])
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert distill([-expected], [part([0, 1], tubes=tubes)]).item() == pytest.approx(2)


def test_of_two_paths_the_spatial_one_stays() -> None:
    model = tiny.dualpath(num_classes=3)
    tubes = tiny.random_tubes(model.plan)
    distill = Distillation(model, model.clip)
    z_BE = model.embed(tubes)
    assert distill([z_BE], [part([0, 1], tubes=tubes)]).item() == pytest.approx(0, abs=1e-6)
    z_BE[:, :24] = 1.0
    assert distill([z_BE], [part([0, 1], tubes=tubes)]).item() == pytest.approx(0, abs=1e-6)


def test_a_tower_that_has_been_trained_is_kept_to_what_it_came_from(tmp_path: Path) -> None:
    """A grafted model that goes on from a checkpoint."""
    described = json.loads(Path(tiny_shards.tower(tmp_path, 24)).read_text())
    theirs = open_clip.CLIP(24, described["vision_cfg"], described["text_cfg"])
    save_file(
        {name: x.contiguous() for name, x in theirs.state_dict().items()}, tmp_path / "clip.safetensors"
    )
    wanted = options(tmp_path)
    clip = wanted["clip"].model_copy(update={"pretrained": str(tmp_path / "clip.safetensors")})
    model = models.create("grafted-b16", num_classes=3, **wanted | {"clip": clip})
    tubes = tiny.random_tubes(model.plan)
    expected = clip_of(model).embed(model.plan.take(tubes, clip_of(model).plan)).detach()
    torch.nn.init.normal_(clip_of(model).blocks[-1].mlp.down.weight)
    weights.save(model, tmp_path / "checkpoint")
    again = create("grafted-b16", tmp_path, checkpoint=tmp_path / "checkpoint")
    assert torch.equal(distillation(again, started_from_checkpoint=True).target(tubes), expected)
    assert not torch.equal(distillation(again, started_from_checkpoint=False).target(tubes), expected)


def test_without_a_clip_there_is_nothing_to_stay_near(tmp_path: Path) -> None:
    tiny_shards.write(tmp_path / "clips", 24)
    values = tiny_shards.spec(tmp_path)
    line = refused({**values, "recipe": {**values["recipe"], "distill": {}}})
    assert line.startswith("recipe.distill: there is no CLIP inside tubevit-nano")
