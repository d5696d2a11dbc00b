"""What each process of an evaluation does: its share of the videos, all views of each, logits averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import models
from jobs.feed import Source
from jobs.labels import targets
from jobs.loop import processes
from jobs.materials import open_data, sampling_of
from jobs.model import in_bfloat16
from jobs.recipe import Testing
from jobs.scores import Scores
from models import weights
from models.model import Model
from pipeline.batches import Dataset
from pipeline.errors import SpecError, SpecListError
from pipeline.sampling import Sampling


def opened(spec: Testing) -> tuple[Sampling, dict[str, Source]]:
    """What a spec tests on, and how its clips are sampled, once it is known that the model fits.

    Raises:
        SpecError: the checkpoint has no such head, or does not fit the shards.
    """
    sampling, wanted = sampling_of(spec.data), spec.model
    assert wanted.checkpoint is not None
    try:
        models.check(wanted.name, checkpoint=wanted.checkpoint, **wanted.options(sampling))
        classes = weights.stored(wanted.checkpoint).classes
    except (ValueError, OSError) as error:
        raise SpecListError([str(error)]) from None
    sources = {}
    for name, data in spec.data.items():
        head = data.head or (name if name in classes or len(classes) != 1 else next(iter(classes)))
        if head not in classes:
            problem = f"the checkpoint has no such head; there are {', '.join(classes) or 'none'}"
            raise SpecError(f"data.{name}.head", head, problem)
        dataset = open_data(f"data.{name}", data, wanted, sampling)
        marks = targets(dataset, classes[head], multi_label=spec.multi_label)
        sources[name] = Source(dataset, head, classes[head], marks)
    return sampling, sources


def evaluate(spec: Testing) -> dict[str, Any]:
    """{dataset: what `Scores.compute` gives}, the same on every process."""
    sampling, sources = opened(spec)
    with processes() as device:
        options = spec.model.options(sampling)
        model = models.create(spec.model.name, checkpoint=spec.model.checkpoint, **options)
        examiner = _Examiner(model.to(device), device, spec)
        return {name: examiner.scores(source) for name, source in sources.items()}


class _Examiner:
    """A model at work on this process' share of the videos."""

    def __init__(self, model: Model, device: torch.device, spec: Testing) -> None:
        self._model, self._device, self._spec = model, device, spec
        self._several = isinstance(model.head, nn.ModuleDict)
        self._half = in_bfloat16(spec.precision, device.type)

    def scores(self, source: Source) -> dict[str, Any]:
        scores = Scores(source.classes, self._device, multi_label=self._spec.multi_label)
        mine = source.dataset.videos()[dist.get_rank() :: dist.get_world_size()]
        for logits_BC, numbers in self._logits(source, mine):
            scores.update(logits_BC, torch.from_numpy(source.targets[numbers]).to(self._device))
        return scores.compute()

    def _logits(self, source: Source, videos: list[np.ndarray]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """For some videos at a time: the mean of the logits of all their views, and each one's first clip."""
        known, batch = source.dataset.known, self._spec.batch
        for some in _together(source.dataset, videos, batch):
            tubes = source.dataset.views(np.concatenate(some))
            views = [int(known["views"].take(clips).to_numpy().sum()) for clips in some]
            logits = torch.cat([self._judged(part, source.head) for part in _split(tubes, batch)])
            means = torch.stack([x.mean(0) for x in logits.split(views)])
            yield means, np.array([clips[0] for clips in some])

    def _judged(self, tubes: dict[str, Tensor], head: str) -> Tensor:
        there = {name: x.to(self._device) for name, x in tubes.items()}
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            return self._model(there, None, head if self._several else None)


def _together(dataset: Dataset, videos: list[np.ndarray], batch: int) -> Iterator[list[np.ndarray]]:
    """Videos with about `batch` views; one that has more comes alone."""
    counts = dataset.known["views"].to_numpy()
    some: list[np.ndarray] = []
    views = 0
    for clips in videos:
        more = int(counts[clips].sum())
        if some and views + more > batch:
            yield some
            some, views = [], 0
        some.append(clips)
        views += more
    if some:
        yield some


def _split(tubes: dict[str, Tensor], batch: int) -> Iterator[dict[str, Tensor]]:
    count = len(next(iter(tubes.values())))
    for start in range(0, count, batch):
        yield {name: x[start : start + batch] for name, x in tubes.items()}
