"""In which order training sees its clips: arithmetic on seeds, no pixels and no state (contract C11).

Each dataset is an endless stream: all of its clips in one order, then all of them in another. A step takes
the next so many of it. What a step sees depends on (seed, step) alone, so that any number of ranks can share
it and a run can go on from any step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

# Shards whose clips are shuffled among each other: enough to mix, few enough to stay in the page cache.
WINDOW_SHARDS = 32


class Order:
    """The stream of a dataset whose shards hold so many clips each.

    An epoch shuffles the shards, and then the clips of every `window_shards` shards that follow each other.
    """

    def __init__(self, clips_of_shards: Sequence[int], seed: int, window_shards: int = WINDOW_SHARDS):
        self._counts = np.asarray(clips_of_shards, dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._counts)])  # of each shard, among all clips
        self._seed, self._window_shards = seed, window_shards
        self.clips = int(self._first[-1])
        if not self.clips:
            raise ValueError("a dataset without clips has no order")
        self._epoch = lru_cache(maxsize=2)(self._shuffled_shards)
        self._window = lru_cache(maxsize=2)(self._shuffled_window)

    def at(self, positions: range) -> tuple[np.ndarray, np.ndarray]:
        """Some consecutive positions of the stream: int64 epochs and int64 clips, counted from 0."""
        where = np.arange(positions.start, positions.stop, dtype=np.int64)
        epochs, places = np.divmod(where, self.clips)
        clips = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            clips[here] = self._clips_at(int(epoch), places[here])
        return epochs, clips

    def _clips_at(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """What stands at ascending places of an epoch."""
        _, starts = self._epoch(epoch)
        windows = np.searchsorted(starts, places, side="right") - 1
        found = [
            self._window(epoch, int(window))[places[windows == window] - starts[window]]
            for window in np.unique(windows)
        ]
        return np.concatenate(found)

    def _shuffled_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's shards that have clips, in order, and where each of its windows begins."""
        shards = np.flatnonzero(self._counts)
        shards = np.random.default_rng([self._seed, epoch]).permutation(shards)
        ends = np.cumsum(self._counts[shards])[self._window_shards - 1 : -1 : self._window_shards]
        return shards, np.concatenate([[0], ends])

    def _shuffled_window(self, epoch: int, window: int) -> np.ndarray:
        """The clips of a window, in order."""
        shards, _ = self._epoch(epoch)
        mine = shards[window * self._window_shards : (window + 1) * self._window_shards]
        clips = np.concatenate([np.arange(self._first[s], self._first[s + 1]) for s in mine])
        return np.random.default_rng([self._seed, epoch, window + 1]).permutation(clips)


def turn(clips: np.ndarray, epochs: np.ndarray, views: np.ndarray) -> np.ndarray:
    """int64 (B,): which of its views a clip shows in an epoch: a hash of both, modulo its views."""
    x = clips.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + epochs.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's last steps
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) % views.astype(np.uint64)).astype(np.int64)


def candidates(clip: int, epoch: int, clips: int) -> Iterator[int]:
    """A clip, and which of all take its place in an epoch if it cannot be read, one after the other."""
    yield clip
    rng = np.random.default_rng([clip, epoch])
    while True:
        yield int(rng.integers(clips))


def shares(weights: Sequence[float], batch: int, multiple: int) -> list[int]:
    """How many clips of each dataset a batch holds: by weight, each a multiple of `multiple`, at least one.

    ValueError if the batch cannot be shared out so.
    """
    if batch % multiple or batch // multiple < len(weights):
        raise ValueError(
            f"{batch} clips cannot be shared out among {len(weights)} datasets in multiples of {multiple}"
        )
    wanted = np.asarray(weights, dtype=np.float64) / sum(weights) * (batch // multiple)
    counts = np.maximum(np.floor(wanted).astype(np.int64), 1)
    # Who is furthest from what it should have gives or gets; of equal ones, the first.
    while (missing := batch // multiple - int(counts.sum())) > 0:
        counts[np.argmax(wanted - counts)] += 1
    while missing < 0:
        counts[np.argmax(np.where(counts > 1, counts - wanted, -np.inf))] -= 1
        missing += 1
    return [int(count) * multiple for count in counts]
