"""What each process of an evaluation does: its share of the videos, all views of each, logits averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import models
from jobs.datasets import Stored, sampling_of
from jobs.feed import Source
from jobs.labels import targets
from jobs.model import in_bfloat16
from jobs.processes import processes
from jobs.recipe import Testing
from jobs.scores import Scores
from models import weights
from models.model import Model
from pipeline.batches import Dataset
from pipeline.errors import SpecError, SpecListError
from pipeline.sampling import Sampling


def opened(spec: Testing) -> tuple[Sampling, dict[str, Source[Dataset]]]:
    """What a spec tests on, and how its clips are sampled, once it is known that the model fits.

    Raises:
        SpecError: the checkpoint has no such head, or does not fit the shards.
    """
    there = {name: Stored.of(f"data.{name}", data) for name, data in spec.data.items()}
    sampling, wanted = sampling_of(there.values(), spec.model), spec.model
    folder = wanted.saved
    assert folder is not None
    try:
        models.check(wanted.name, checkpoint=folder, **wanted.options(sampling))
        classes = weights.stored(folder).classes
    except (ValueError, OSError) as error:
        raise SpecListError([str(error)]) from None
    sources = {}
    for name, data in spec.data.items():
        head = data.head or (name if name in classes or len(classes) != 1 else next(iter(classes)))
        if head not in classes:
            problem = f"the checkpoint has no such head; there are {', '.join(classes) or 'none'}"
            raise SpecError(f"data.{name}.head", head, problem)
        dataset = there[name].dataset(wanted, sampling)
        marks = targets(dataset, classes[head], multi_label=spec.multi_label)
        sources[name] = Source(dataset, head, classes[head], marks)
    return sampling, sources


def evaluate(spec: Testing) -> dict[str, Any]:
    """{dataset: what `Scores.compute` gives}, the same on every process."""
    sampling, sources = opened(spec)
    with processes() as device:
        options = spec.model.options(sampling)
        model = models.create(spec.model.name, checkpoint=spec.model.saved, **options)
        examiner = _Examiner(model.to(device), device, spec)
        return {name: examiner.scores(source) for name, source in sources.items()}


class _Examiner:
    """A model at work on this process' share of the videos."""

    def __init__(self, model: Model, device: torch.device, spec: Testing) -> None:
        self._model, self._device, self._spec = model, device, spec
        self._several = isinstance(model.head, nn.ModuleDict)
        self._half = in_bfloat16(spec.precision, device.type)

    def scores(self, source: Source[Dataset]) -> dict[str, Any]:
        scores = Scores(source.classes, self._device, multi_label=self._spec.multi_label)
        mine = source.dataset.videos()[dist.get_rank() :: dist.get_world_size()]
        for logits_BC, numbers in self._logits(source, mine):
            scores.update(logits_BC, torch.from_numpy(source.targets[numbers]).to(self._device))
        return scores.compute()

    def _logits(
        self, source: Source[Dataset], videos: list[np.ndarray]
    ) -> Iterator[tuple[Tensor, np.ndarray]]:
        """For some videos at a time: the mean of the logits of all their views, and each one's first clip."""
        begun_C = torch.zeros(len(source.classes), device=self._device)  # the sum of a video half seen
        if not videos:  # metrics want something of every process: no rows
            yield begun_C.new_zeros(0, len(begun_C)), np.zeros(0, np.int64)
            return
        first = np.array([clips[0] for clips in videos])
        shards, rows, of_clip = source.dataset.views(np.concatenate(videos))
        of_video = np.repeat(np.arange(len(videos)), [len(clips) for clips in videos])[of_clip]
        views = np.bincount(of_video)
        for start in range(0, len(rows), self._spec.batch):
            stop = start + self._spec.batch
            owners = of_video[start:stop]
            tubes = source.dataset.rows(shards[start:stop], rows[start:stop])
            sums_VC = begun_C.new_zeros(owners[-1] - owners[0] + 1, len(begun_C))
            sums_VC[0] = begun_C
            places = torch.from_numpy(owners - owners[0]).to(self._device)
            sums_VC.index_add_(0, places, self._judged(tubes, source.head))
            half_seen = stop < len(rows) and of_video[stop] == owners[-1]
            begun_C = sums_VC[-1] if half_seen else torch.zeros_like(begun_C)
            done = np.arange(owners[0], owners[-1] + (not half_seen))
            counts = torch.from_numpy(views[done]).to(self._device)
            yield sums_VC[: len(done)] / counts[:, None], first[done]

    def _judged(self, tubes: dict[str, Tensor], head: str) -> Tensor:
        there = {name: x.to(self._device) for name, x in tubes.items()}
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            return self._model(there, None, head if self._several else None)
