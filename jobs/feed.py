"""What each step of a training process works on: its part of the global batch, read ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jobs.recipe import Augment
from models import augment
from pipeline.batches import Dataset

AHEAD = 2  # steps that are read before they are asked for


@dataclass
class Part:
    """Clips of one dataset, as a model learns from them.

    targets: see `jobs.labels.targets`. partners: int64 (B,), the places of those with which they are mixed;
    shares: float32 (B,), how much of a clip is its own. captions: int64 (B,), see `jobs.labels.captions`, if
    they are learned from. clip_ids: names to report by.
    """

    head: str
    tubes: dict[str, Tensor]
    mirrored: Tensor | None
    targets: Tensor
    partners: Tensor
    shares: Tensor
    captions: Tensor | None
    clip_ids: list[str]


@dataclass(frozen=True)
class Source:
    """A dataset, with what its clips are to be recognised as, and how many of them each batch holds.

    targets, captions: of each clip, see `jobs.labels`. share: 0 for what is no part of training. flip: how
    often one is mirrored, if not as often as those of other datasets.
    """

    dataset: Dataset
    head: str
    classes: tuple[str, ...]
    targets: np.ndarray
    share: int = 0
    flip: float | None = None
    captions: np.ndarray | None = None


class Feed:
    """The steps of one rank of `world`, each in `accumulate` parts of as many clips of every dataset.

    What a step holds depends on the seed and its number alone (contract C11), not on how many share it; and
    what all ranks' k-th parts hold together, on `accumulate` besides.
    """

    def __init__(
        self, sources: Mapping[str, Source], rank: int, world: int, accumulate: int, seed: int,
        change: Augment, device: torch.device,
    ) -> None:  # fmt: skip
        self._sources = sources
        self._numbers, self._parts = range(rank, world * accumulate, world), world * accumulate
        self._seed, self._change, self._device = seed, change, device
        self._orders = {
            name: source.dataset.order(_seed_of(seed, k)) for k, (name, source) in enumerate(sources.items())
        }

    def steps(self, first: int, stop: int) -> Iterator[list[list[Part]]]:
        """Steps [first, stop): of each its parts, and of each part one `Part` for every dataset."""
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as thread:
            ready: deque[Future[list[list[Part]]]] = deque()
            try:
                for step in range(first, stop):
                    while len(ready) <= AHEAD and step + len(ready) < stop:
                        ready.append(thread.submit(self.read, step + len(ready)))
                    yield ready.popleft().result()
            finally:
                for future in ready:
                    future.cancel()

    def read(self, step: int) -> list[list[Part]]:
        """One step's parts, with tubes in memory that a GPU reads from if there is one."""
        return [[self._part(name, step, number) for name in self._sources] for number in self._numbers]

    def _part(self, name: str, step: int, number: int) -> Part:
        source = self._sources[name]
        size = source.share // self._parts
        start = step * source.share + number * size
        epochs, clips = self._orders[name].at(range(start, start + size))
        batch = source.dataset.read(clips, epochs, pinned=self._device.type == "cuda")
        rng = np.random.default_rng([self._seed, step, list(self._sources).index(name)])
        flip = self._change.flip if source.flip is None else source.flip
        changes = augment.draw(
            source.share, rng, flip=flip, erase=self._change.erase,
            colour=(self._change.brightness, self._change.contrast, self._change.saturation),
            mixup=self._change.mixup, cutmix=self._change.cutmix,
        ).part(slice(number * size, (number + 1) * size))  # fmt: skip
        tubes = {k: x.to(self._device, non_blocking=True) for k, x in batch.tubes.items()}
        tubes, mirrored, shares = augment.apply(tubes, source.dataset.plan, changes)
        targets, partners = torch.from_numpy(source.targets[clips]), torch.from_numpy(changes.partners())
        captions = None if source.captions is None else torch.from_numpy(source.captions[clips])
        ids = source.dataset.known["clip_id"].take(clips).to_pylist()
        return Part(
            source.head, tubes, mirrored, targets.to(self._device), partners.to(self._device), shares,
            None if captions is None else captions.to(self._device), ids,
        )  # fmt: skip


def _seed_of(seed: int, dataset: int) -> int:
    """Another stream for each dataset, so that two of the same clips do not march in step."""
    return int(np.random.default_rng([seed, dataset]).integers(1 << 62))
