"""What a training job is made of: clips, what they are to be recognised as, and a model for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

import models
from jobs.feed import Source
from jobs.labels import Classes, classes_of, targets
from jobs.optimizer import freeze
from jobs.recipe import Learning
from models import Options, build, registry, weights
from models.model import Model
from pipeline.batches import Dataset
from pipeline.errors import SpecError, SpecListError
from pipeline.plan import Plan
from pipeline.sampling import Sampling
from pipeline.shards import ShardSet, shard_files
from pipeline.storage import locate


@dataclass(frozen=True)
class Materials:
    """sampling: of the clips. classes: of each head. sources: to learn from. tests: to be tested on."""

    sampling: Sampling
    classes: Classes
    sources: dict[str, Source]
    tests: dict[str, Source]


def materials(spec: Learning) -> Materials:
    """Open all data of a spec. SpecError if it lacks pixels or labels that are needed."""
    sampling = sampling_of(spec)
    data = {name: open_data(spec, name, "data", sampling) for name in spec.data}
    tests = {name: open_data(spec, name, "validation.data", sampling) for name in spec.validation.data}
    known = {} if spec.model.checkpoint is None else weights.stored(spec.model.checkpoint).classes
    classes = classes_of(data, {name: spec.head(name) for name in data}, known)
    return Materials(
        sampling,
        classes,
        _sources(spec, data, classes, "data", spec.shares()),
        _sources(spec, tests, classes, "validation.data", {}),
    )


def create(spec: Learning, data: Materials) -> Model:
    """The model with a head for each label space, and with nothing but what the spec lets it train."""
    options, wanted = _options(spec, data), spec.model
    try:
        model = models.create(wanted.name, checkpoint=wanted.checkpoint, seed=wanted.seed, **options)
        freeze(model, spec.recipe.optimizer)
    except (ValueError, OSError) as error:
        raise SpecListError([str(error)]) from None
    return model


def check(spec: Learning, data: Materials) -> None:
    """Raise what `create` would, without reading weights."""
    options, wanted = _options(spec, data), spec.model
    try:
        models.check(wanted.name, checkpoint=wanted.checkpoint, **options)
        with torch.device("meta"):
            freeze(build.build(registry.resolve(wanted.name, options)), spec.recipe.optimizer)
    except (ValueError, OSError) as error:
        raise SpecListError([str(error)]) from None


def _options(spec: Learning, data: Materials) -> Options:
    counts = {head: len(names) for head, names in data.classes.items()}
    classes = counts if len(counts) > 1 else next(iter(counts.values()))
    return {**spec.model.options(data.sampling), "num_classes": classes}


def _sources(
    spec: Learning, datasets: Mapping[str, Dataset], classes: Classes, of: str, shares: Mapping[str, int]
) -> dict[str, Source]:
    found = {}
    for name, dataset in datasets.items():
        names = classes[spec.head(name)]
        marks = targets(dataset, names, multi_label=spec.recipe.multi_label, field=f"{of}.{name}")
        found[name] = Source(dataset, spec.head(name), names, marks, shares.get(name, 0))
    return found


def open_set(folder: str, field: str) -> ShardSet:
    """The one set of a shard job's output folder, or of a set's own. SpecError if there are several."""
    found = shard_files(locate(folder, field))
    if len(found) > 1:
        which = " or ".join(f"{folder}/shards/{name}" for name in found)
        raise SpecError(field, folder, f"holds several sets; name one: {which}")
    return ShardSet(next(iter(found.values())))


def sampling_of(spec: Learning) -> Sampling:
    """How the clips are sampled that the model is made for: the first video dataset's, if there is one."""
    sets = [open_set(data.shards, f"data.{name}.shards") for name, data in spec.data.items()]
    return next((one.sampling for one in sets if not is_still(one.plan, one.sampling)), sets[0].sampling)


def is_still(plan: Plan, sampling: Sampling) -> bool:
    """Whether shards hold images, cut as the first frame of clips would be."""
    return plan.clip_frames == 1 and sampling.frames > 1


def open_data(spec: Learning, name: str, of: str, sampling: Sampling) -> Dataset:
    """A dataset as the spec's model sees it; `of` is "data" or "validation.data".

    Raises:
        SpecError: the model takes no images; or shards lack its tubes, or are of another size.
    """
    data = (spec.data if of == "data" else spec.validation.data)[name]
    field = f"{of}.{name}.shards"
    found = open_set(data.shards, field)
    still = is_still(found.plan, found.sampling)
    plans = spec.model.plans(sampling)
    wanted = plans.get("image" if still else "video")
    if wanted is None:
        raise SpecError(field, data.shards, f"holds images, and {spec.model.name} takes none")
    try:
        return Dataset(f"{of}.{name}", found.files, wanted, data.split)
    except SpecError as error:
        raise SpecListError([f"{field} = {data.shards!r}: {error}"]) from None
