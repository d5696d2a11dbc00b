"""The model that comes along: small, whole, found by its name, and as good as its card says."""

from __future__ import annotations

import io
import json
import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import models
from benchmarks import digits
from jobs.embed import Encoder
from jobs.model import saved
from jobs.spec import EmbedSpec, load
from models.model import Model
from models.weights import WEIGHTS, stored
from pipeline.cut import cut
from pipeline.errors import SpecError
from pipeline.sampling import Sampling
from pipeline.storage import locate
from pipeline.video import Pixels, read_clips

ROOT = Path(__file__).parent.parent
SPEC = ROOT / "jobs" / "specs" / "quickstart.yaml"
FOLDER = ROOT / "models" / "quickstart"
FRESH = 20_000_003  # a seed of moving digits that nothing was trained or measured with


def quickstart(*changes: str) -> tuple[EmbedSpec, Sampling]:
    spec = load(SPEC, changes)
    assert isinstance(spec, EmbedSpec)
    assert spec.sampling is not None
    return spec, spec.sampling


@cache
def model(*, trained: bool = True) -> Model:
    """That of the quickstart, or one of its kind that has learned nothing."""
    spec, sampling = quickstart()
    options = {**spec.model.options(sampling), "num_classes": stored(FOLDER).model.num_classes}
    return models.create(spec.model.name, checkpoint=spec.model.saved if trained else None, **options)


def batch(pictures: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Clips uint8 (T, 64, 64, 3), or images if T is 1, as the model takes them."""
    plan = model().image_plan if len(pictures[0]) == 1 else model().plan
    assert plan is not None
    (canvas,) = plan.canvases
    tubes = [cut({canvas: x}, plan) for x in pictures]
    return {tube.name: torch.from_numpy(np.stack([x[tube.name] for x in tubes])) for tube in plan.tubes}


def accuracy(model: Model, pictures: list[np.ndarray], labels: list[str], head: str) -> float:
    with torch.inference_mode():
        named = model(batch(pictures), None, head).argmax(1)
    classes = stored(FOLDER).classes[head]
    return float(np.mean([classes[k] == label for k, label in zip(named, labels, strict=True)]))


def test_it_is_small_and_fits_its_model() -> None:
    assert (FOLDER / WEIGHTS).stat().st_size < 12_000_000
    held, made = load_file(FOLDER / WEIGHTS), model().state_dict()
    assert held.keys() == made.keys()
    assert all(torch.equal(held[name], x) for name, x in made.items())
    assert stored(FOLDER).plan_digest == model().plan.digest
    assert "/" not in (FOLDER / "config.json").read_text()  # no machine's path


def test_it_knows_which_way_new_digits_move() -> None:
    """Of samples and a seed that no training has seen; chance is 1 in 8."""
    scenes = [digits.draw(number, "held-out", FRESH) for number in range(64)]
    pictures = [digits.paint(scene) for scene in scenes]
    labels = [str(scene.motion) for scene in scenes]
    assert accuracy(model(), pictures, labels, "motion") > 0.8
    assert accuracy(model(trained=False), pictures, labels, "motion") < 0.4


def test_it_knows_cifars_test_images_as_well_as_its_card_says(shared: Path) -> None:
    rows = pq.read_table(shared / "images" / "cifar10_test.parquet").to_pylist()[::5]
    pictures = [
        np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB").resize((64, 64), Image.Resampling.BOX))
        for row in rows
    ]
    found = accuracy(model(), [x[None] for x in pictures], [row["label"] for row in rows], "cifar")
    assert found == pytest.approx(measured("cifar"), abs=0.1)  # 400 of 2,000: four standard deviations


def views() -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Of the quickstart's views: the scene, and the embedding by the trained and by the random model."""
    spec, sampling = quickstart()
    assert isinstance(spec.input.path, str)
    try:
        folder = locate(spec.input.path)
    except SpecError:
        pytest.skip("needs the extra 'quickstart'")
    scenes, pictures = [], []
    for path in sorted(Path(folder.path).glob("*.mp4")):
        for view in read_clips(locate(str(path)), sampling, model().plan):
            assert isinstance(view, Pixels)
            scenes.append(path.stem.partition("_")[0])  # carphone is there twice
            pictures.append(next(iter(view.frames.values())).copy())
    with torch.inference_mode():
        trained, untrained = (one.embed(batch(pictures)) for one in (model(), model(trained=False)))
    return scenes, trained, untrained


def contrast(scenes: list[str], z_ND: torch.Tensor) -> float:
    """How much more alike two views of one scene are than two of different ones: of their mean cosines."""
    z_ND = torch.nn.functional.normalize(z_ND, dim=1)
    cosine_NN = z_ND @ z_ND.T
    same = torch.tensor([[a == b for b in scenes] for a in scenes])
    other = ~torch.eye(len(scenes), dtype=torch.bool)
    return float(cosine_NN[same & other].mean() - cosine_NN[~same].mean())


def test_views_of_a_real_scene_are_nearer_to_each_other_than_to_those_of_another() -> None:
    scenes, trained, untrained = views()
    z_ND = torch.nn.functional.normalize(trained, dim=1)
    nearest = (z_ND @ z_ND.T).fill_diagonal_(-1).argmax(1)
    # Colours alone get that far, also by random weights; what was learned sets scenes well apart.
    assert sum(scenes[k] == scene for k, scene in zip(nearest, scenes, strict=True)) >= 14
    assert contrast(scenes, trained) > 5 * contrast(scenes, untrained)


def measured(head: str) -> float:
    return json.loads((FOLDER / "metrics.json").read_text())["accuracy"][head]


def test_its_card_gives_the_figures_that_were_measured() -> None:
    card = (FOLDER / "README.md").read_text()
    for head in ("cifar", "motion"):
        assert re.search(rf"^\| `{head}` .*\| {100 * measured(head):.1f} % \|$", card, re.M)
    assert (ROOT / "benchmarks" / "specs" / "quickstart_train.yaml").name in card


def test_a_package_without_a_checkpoint_is_one_line() -> None:
    with pytest.raises(SpecError, match="checkpoint = 'package://nowhere/x': no Python package 'nowhere'"):
        saved("package://nowhere/x")
    spec, sampling = quickstart("model.checkpoint=package://models/slowstart")
    with pytest.raises(SpecError, match=r"model.checkpoint = '.*models/slowstart': no config.json") as caught:
        Encoder(spec.model, sampling).check()
    assert "\n" not in str(caught.value)


def test_the_readmes_command_for_clips_own_weights_fits() -> None:
    """What it says with `--set` makes a spec whose model can be made; nothing is downloaded."""
    readme = (ROOT / "README.md").read_text()
    (command,) = re.findall(r"^tubelet run jobs/specs/quickstart.yaml (.*?[^\\])$", readme, re.M | re.S)
    words = shlex.split(command.replace("\\\n", " "))
    changes = [words[k + 1] for k, word in enumerate(words) if word == "--set"]
    spec, sampling = quickstart(*changes)
    assert spec.model.clip is not None
    assert (spec.model.name, spec.model.clip.pretrained) == ("gated-b16", "openai")
    assert (sampling.height_px, sampling.width_px) == (224, 224)
    Encoder(spec.model, sampling).check()
