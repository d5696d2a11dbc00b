"""What a training job is made of: clips, what they are to be recognised as, and a model for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

import models
from jobs import contrast, distill
from jobs.datasets import places, sampling_of
from jobs.feed import Source
from jobs.labels import Classes, captions, classes_of, targets
from jobs.optimizer import freeze
from jobs.recipe import Learning
from models import Options, build, registry, weights
from models.model import Model
from pipeline.batches import ClipSet
from pipeline.errors import SpecListError
from pipeline.sampling import Sampling


class Held(NamedTuple):
    """What a dataset holds: where it lies, its clips, and a digest of what their order depends on."""

    folder: str
    clips: int
    digest: str
    source: str = "shards"


@dataclass(frozen=True)
class Materials:
    """sampling: of the clips. classes: of each head. sources: to learn from. tests: to be tested on.

    captions: all that clips have, if they are learned from.
    """

    sampling: Sampling
    classes: Classes
    sources: dict[str, Source]
    tests: dict[str, Source]
    captions: Sequence[str] = ()


def materials(spec: Learning, run: Path | None = None) -> Materials:
    """Open all data of a spec; videos are those of the lists that are kept in a run's folder, if they are.

    Raises:
        SpecError: it lacks pixels or labels that are needed.
    """
    there = places(spec, run)
    sampling = sampling_of([there[f"data.{name}"] for name in spec.data], spec.model)
    opened: dict[str, ClipSet] = {
        field: place.dataset(spec.model, sampling) for field, place in there.items()
    }
    data = {name: opened[f"data.{name}"] for name in spec.data}
    tests = {name: opened[f"validation.data.{name}"] for name in spec.validation.data}
    classes = classes_of(data, {name: spec.head(name) for name in data}, _known(spec))
    shares, heads = spec.shares(), {name: spec.test_head(name) for name in tests}
    found = Materials(
        sampling,
        classes,
        {
            name: replace(
                _source(spec, dataset, spec.head(name), classes, shares[name]), flip=spec.data[name].flip
            )
            for name, dataset in data.items()
        },
        {name: _source(spec, dataset, heads[name], classes, 0) for name, dataset in tests.items()},
    )
    for head, names in classes.items():
        if len(names) < 2:
            problem = f"{len(names)} classes ({', '.join(names) or 'none'}): there is nothing to tell apart"
            raise SpecListError([f"head {head!r}: {problem}"])
    if spec.recipe.contrast is None or spec.recipe.contrast.against == "classes":
        return found
    texts, numbers = captions(data)
    sources = {name: replace(source, captions=numbers[name]) for name, source in found.sources.items()}
    return replace(found, sources=sources, captions=texts)


def held(spec: Learning, data: Materials) -> dict[str, Held]:
    """What each dataset holds: the order of a run's clips depends on it, so that it must not change."""
    sets = {name: source.dataset for name, source in data.sources.items()}
    return {
        name: Held(spec.data[name].path, len(dataset), dataset.digest, spec.data[name].source)
        for name, dataset in sets.items()
    }


def create(spec: Learning, data: Materials) -> Model:
    """The model with a head for each label space, and with nothing but what the spec lets it train."""
    options, wanted = _options(spec, data), spec.model
    try:
        model = models.create(wanted.name, checkpoint=wanted.saved, seed=wanted.seed, **options)
        if all(source.dataset.plan.clip_frames == 1 for source in data.sources.values()):
            _freeze_unseen(model)
        freeze(model, spec.recipe.optimizer)
    except (ValueError, OSError, KeyError) as error:
        raise SpecListError([str(error)]) from None
    return model


def _freeze_unseen(model: Model) -> None:
    """Where there are images alone, tubes of several frames get no gradient, which DDP does not take."""
    assert model.image_plan is not None
    seen = {tube.name for tube in model.image_plan.tubes}
    for name, parameter in model.named_parameters():
        tube = name.rpartition(".")[2]
        if "tokenizer." in name and tube.startswith("tube_") and tube not in seen:
            parameter.requires_grad_(False)


def _known(spec: Learning) -> Classes:
    """The classes of the checkpoint that training starts from."""
    folder = spec.model.saved
    if folder is None:
        return {}
    try:
        return weights.stored(folder).classes
    except (ValueError, OSError) as error:
        raise SpecListError([str(error)]) from None


def check(spec: Learning, data: Materials) -> None:
    """Raise what `create` would, without reading weights."""
    options, wanted = _options(spec, data), spec.model
    try:
        models.check(wanted.name, checkpoint=wanted.saved, **options)
        config = registry.resolve(wanted.name, options)
        if wanted.saved is not None:
            config = weights.agree(config, wanted.saved)
        with torch.device("meta"):
            model = build.build(config)
            freeze(model, spec.recipe.optimizer)
    except (ValueError, OSError, KeyError) as error:
        raise SpecListError([str(error)]) from None
    if spec.recipe.contrast is not None:
        contrast.check(spec.recipe.contrast, config, model.dim)
    if spec.recipe.distill is not None:
        distill.check(config)


def _options(spec: Learning, data: Materials) -> Options:
    counts = {head: len(names) for head, names in data.classes.items()}
    classes = counts if len(counts) > 1 else next(iter(counts.values()))
    return {**spec.model.options(data.sampling), "num_classes": classes}


def _source(spec: Learning, dataset: ClipSet, head: str, classes: Classes, share: int) -> Source:
    marks = targets(dataset, classes[head], multi_label=spec.recipe.multi_label)
    return Source(dataset, head, classes[head], marks, share)
