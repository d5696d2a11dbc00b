"""What each step of a training process works on: its part of the global batch, read ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from jobs.recipe import Augment
from models import augment
from pipeline.batches import Batch, ClipSet
from pipeline.errors import Failure

AHEAD = 2  # steps that are read before they are asked for


@dataclass
class Part:
    """Clips of one dataset, as a model learns from them.

    targets: see `jobs.labels.targets`. partners: int64 (B,), the places of those with which they are mixed;
    shares: float32 (B,), how much of a clip is its own. captions: int64 (B,), see `jobs.labels.captions`, if
    they are learned from. clip_ids: names to report by. failures: of clips that others stand in for.
    """

    head: str
    tubes: dict[str, Tensor]
    mirrored: Tensor | None
    targets: Tensor
    partners: Tensor
    shares: Tensor
    captions: Tensor | None
    clip_ids: list[str]
    failures: tuple[Failure, ...] = ()


AnyClipSet = TypeVar("AnyClipSet", bound=ClipSet, covariant=True)


@dataclass(frozen=True)
class Source(Generic[AnyClipSet]):
    """A dataset, with what its clips are to be recognised as, and how many of them each batch holds.

    targets, captions: of each clip, see `jobs.labels`. share: 0 for what is no part of training. flip: how
    often one is mirrored, if not as often as those of other datasets.
    """

    dataset: AnyClipSet
    head: str
    classes: tuple[str, ...]
    targets: np.ndarray
    share: int = 0
    flip: float | None = None
    captions: np.ndarray | None = None


@dataclass(frozen=True)
class Request:
    """Some clips that are wanted; see `ClipSet.read`."""

    dataset: ClipSet
    clips: np.ndarray
    epochs: np.ndarray
    pinned: bool = False

    def read(self) -> Batch:
        """In this thread, now."""
        return self.dataset.read(self.clips, self.epochs, pinned=self.pinned)


# Gives a batch for each request, in their order.
Reader = Callable[[Iterator[Request]], Iterator[Batch]]


def read_here(requests: Iterator[Request]) -> Iterator[Batch]:
    """Each when it is asked for."""
    return (wanted.read() for wanted in requests)


class Feed:
    """The steps of one rank of `world`, each in `accumulate` parts of as many clips of every dataset.

    What a step holds depends on the seed and its number alone (contract C11), not on how many share it; and
    what all ranks' k-th parts hold together, on `accumulate` besides.
    """

    def __init__(
        self, sources: Mapping[str, Source], rank: int, world: int, accumulate: int, seed: int,
        change: Augment, device: torch.device, reader: Reader = read_here,
    ) -> None:  # fmt: skip
        self._sources, self._reader = sources, reader
        self._numbers, self._parts = range(rank, world * accumulate, world), world * accumulate
        self._seed, self._change, self._device = seed, change, device
        self._orders = {
            name: source.dataset.order(_seed_of(seed, k)) for k, (name, source) in enumerate(sources.items())
        }

    def steps(self, first: int, stop: int) -> Iterator[list[list[Part]]]:
        """Steps [first, stop): of each its parts, and of each part one `Part` for every dataset."""
        batches = self._reader(chain.from_iterable(map(self._requests, range(first, stop))))
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as thread:
            ready: deque[Future[list[list[Part]]]] = deque()
            try:
                for step in range(first, stop):
                    while len(ready) <= AHEAD and step + len(ready) < stop:
                        ready.append(thread.submit(self._made, step + len(ready), batches))
                    yield ready.popleft().result()
            finally:
                for future in ready:
                    future.cancel()

    def read(self, step: int) -> list[list[Part]]:
        """One step's parts, with tubes in memory that a GPU reads from if there is one."""
        return self._made(step, self._reader(self._requests(step)))

    def _requests(self, step: int) -> Iterator[Request]:
        """For each part, and in it for each dataset."""
        for number in self._numbers:
            for name, source in self._sources.items():
                size = source.share // self._parts
                start = step * source.share + number * size
                epochs, clips = self._orders[name].at(range(start, start + size))
                yield Request(source.dataset, clips, epochs, self._device.type == "cuda")

    def _made(self, step: int, batches: Iterator[Batch]) -> list[list[Part]]:
        """A step's parts of the batches that were requested for it."""
        return [
            [self._part(name, step, number, next(batches)) for name in self._sources]
            for number in self._numbers
        ]

    def _part(self, name: str, step: int, number: int, batch: Batch) -> Part:
        source = self._sources[name]
        size = source.share // self._parts
        rng = np.random.default_rng([self._seed, step, list(self._sources).index(name)])
        flip = self._change.flip if source.flip is None else source.flip
        changes = augment.draw(
            source.share, rng, flip=flip, erase=self._change.erase,
            colour=(self._change.brightness, self._change.contrast, self._change.saturation),
            mixup=self._change.mixup, cutmix=self._change.cutmix,
        ).part(slice(number * size, (number + 1) * size))  # fmt: skip
        tubes = {k: x.to(self._device, non_blocking=True) for k, x in batch.tubes.items()}
        tubes, mirrored, shares = augment.apply(tubes, source.dataset.plan, changes)
        clips, partners = batch.clips, torch.from_numpy(changes.partners())
        targets = torch.from_numpy(source.targets[clips])
        captions = None if source.captions is None else torch.from_numpy(source.captions[clips])
        ids = source.dataset.known["clip_id"].take(clips).to_pylist()
        return Part(
            source.head, tubes, mirrored, targets.to(self._device), partners.to(self._device), shares,
            None if captions is None else captions.to(self._device), ids, batch.failures,
        )  # fmt: skip


def _seed_of(seed: int, dataset: int) -> int:
    """Another stream for each dataset, so that two of the same clips do not march in step."""
    return int(np.random.default_rng([seed, dataset]).integers(1 << 62))
