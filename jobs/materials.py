"""What a training job is made of: clips, what they are to be recognised as, and a model for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

import models
from jobs import contrast, distill
from jobs.feed import Source
from jobs.labels import Classes, captions, classes_of, targets
from jobs.model import Weighted
from jobs.optimizer import freeze
from jobs.recipe import Clips, Learning
from models import Options, build, registry, weights
from models.model import Model
from pipeline.batches import Dataset
from pipeline.errors import SpecError, SpecListError
from pipeline.plan import Plan
from pipeline.sampling import Sampling
from pipeline.shards import ShardSet, require, shard_files
from pipeline.storage import locate


class Held(NamedTuple):
    """What a dataset holds: the folder of its shards, its clips, and a digest of how they lie in them."""

    folder: str
    clips: int
    digest: str


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


def materials(spec: Learning) -> Materials:
    """Open all data of a spec. SpecError if it lacks pixels or labels that are needed."""
    sampling = sampling_of(spec.data)
    data = {name: open_data(f"data.{name}", one, spec.model, sampling) for name, one in spec.data.items()}
    tests = {
        name: open_data(f"validation.data.{name}", one, spec.model, sampling)
        for name, one in spec.validation.data.items()
    }
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
    found = {}
    for name, source in data.sources.items():
        dataset = source.dataset
        counts = np.bincount(dataset.known["shard"].to_numpy(), minlength=len(dataset.files))
        files = (file.location.path.rpartition("/")[2] for file in dataset.files)
        lines = "".join(f"{file} {count}\n" for file, count in zip(files, counts, strict=True))
        digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
        found[name] = Held(spec.data[name].shards, len(dataset), digest)
    return found


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


def _source(spec: Learning, dataset: Dataset, head: str, classes: Classes, share: int) -> Source:
    marks = targets(dataset, classes[head], multi_label=spec.recipe.multi_label)
    return Source(dataset, head, classes[head], marks, share)


def open_set(folder: str, field: str) -> ShardSet:
    """The one set of a shard job's output folder, or of a set's own. SpecError if there are several."""
    place = locate(folder, field)
    if not place.is_local:
        raise SpecError(field, folder, "training maps its shards: copy them to a disk of every worker")
    found = shard_files(place)
    if len(found) > 1:
        which = " or ".join(f"{folder}/shards/{name}" for name in found)
        raise SpecError(field, folder, f"holds several sets; name one: {which}")
    return ShardSet(next(iter(found.values())))


def sampling_of(data: Mapping[str, Clips]) -> Sampling:
    """How the clips are sampled that the model is made for: the first video dataset's, if there is one."""
    sets = [open_set(one.shards, f"data.{name}.shards") for name, one in data.items()]
    return next((one.sampling for one in sets if not is_still(one.plan, one.sampling)), sets[0].sampling)


def is_still(plan: Plan, sampling: Sampling) -> bool:
    """Whether shards hold images, cut as the first frame of clips would be."""
    return plan.clip_frames == 1 and sampling.frames > 1


def open_data(field: str, data: Clips, model: Weighted, sampling: Sampling) -> Dataset:
    """Clips as a model sees them that is made for a sampling; `field` is what the spec calls them.

    Raises:
        SpecError: the model takes no images; or shards lack its tubes, or are of another size.
    """
    found = open_set(data.shards, f"{field}.shards")
    plans = model.plans(sampling)
    wanted = plans.get("image" if is_still(found.plan, found.sampling) else "video")
    if wanted is None:
        raise SpecError(f"{field}.shards", data.shards, f"holds images, and {model.name} takes none")
    require(found.plan, wanted, data.shards, f"{field}.shards")
    return Dataset(field, found.files, wanted, data.split)
