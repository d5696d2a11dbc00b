"""Arrow shards, or videos, -> torch tensors. The only module of the pipeline that imports torch.

N clips of a dataset, B of them in a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.errors import Failure, SpecError
from pipeline.live import Found, Search, Videos
from pipeline.order import Order, turn
from pipeline.plan import Plan
from pipeline.rows import input_id
from pipeline.shards import ShardFile, ShardReader, require, tube_arrays, tube_values, videos_of
from pipeline.tables import of_split

# What is known of a clip without looking at its pixels.
KNOWN = ("clip_id", "uri", "view_index", "labels", "caption", "split", "group")
OPEN_SHARDS = 256  # that stay mapped
OPEN_BATCHES = 4096  # record batches whose places in memory are remembered


def to_torch(batch: pa.RecordBatch, held: Plan, wanted: Plan | None = None) -> dict[str, torch.Tensor]:
    """The tubes of a record batch that was cut by `held`, as a model takes them.

    Returns:
        {tube name: uint8 (rows, n_t, n_h, n_w, kT, kH, kW, 3)}, views of Arrow's own memory, mapped from
        the shard's file where there is one. Never write into them.
    """
    tensors = {
        tube.name: torch.from_dlpack(tube_values(batch, tube.name)).view(-1, *tube.shape)
        for tube in held.tubes
    }
    return tensors if wanted is None else held.take(tensors, wanted)


@dataclass(frozen=True)
class Batch:
    """Some clips of one dataset: their pixels, and which ones they are.

    tubes: {tube name: uint8 (B, n_t, n_h, n_w, kT, kH, kW, 3)}.
    clips, epochs: int64 (B,): their places in `known`, and how often all had been seen before.
    failures: of clips that cannot be read; others stand in their places.
    """

    tubes: dict[str, torch.Tensor]
    clips: np.ndarray
    epochs: np.ndarray
    failures: tuple[Failure, ...] = ()


class ClipSet(Protocol):
    """What training wants of a dataset: a row of `known` for each clip, their order, and their pixels."""

    name: str
    plan: Plan
    known: pa.Table

    def __len__(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def order(self, seed: int) -> Order: ...

    def read(self, clips: np.ndarray, epochs: np.ndarray, *, pinned: bool = False) -> Batch: ...


class Dataset:
    """The clips of a shard set, to be read in any order.

    known: a row for each clip: KNOWN, and `shard`, `row`, `views`: where its views lie, one after the other.
    """

    def __init__(
        self, name: str, files: Sequence[ShardFile], wanted: Plan, split: str | tuple[str, ...] | None = None
    ):
        """SpecError if a shard lacks pixels that the plan wants, or no clip is of this, or one, split."""
        self.name, self.files, self.plan = name, list(files), wanted
        self._open = lru_cache(OPEN_SHARDS)(self._reader)
        self._arrays = lru_cache(OPEN_BATCHES)(self._pixels)
        tables = [_clips(ShardReader(file.location), number, wanted) for number, file in enumerate(files)]
        self.known = of_split(pa.concat_tables(tables).combine_chunks(), split, name)
        if not self.known.num_rows:
            raise SpecError(name, files[0].location.path, "holds no clips")
        self._where = {column: self.known[column].to_numpy() for column in ("shard", "row", "views")}

    def __len__(self) -> int:
        return self.known.num_rows

    @property
    def digest(self) -> str:
        """Of what the order depends on: how the clips lie in the shards."""
        files = (file.location.path.rpartition("/")[2] for file in self.files)
        return _digest(f"{file} {count}\n" for file, count in zip(files, self._counts(), strict=True))

    def order(self, seed: int) -> Order:
        """The stream of its clips."""
        return Order(self._counts(), seed)

    def _counts(self) -> list[int]:
        """How many clips each shard holds."""
        counts: list[int] = np.bincount(self._where["shard"], minlength=len(self.files)).tolist()
        return counts

    def read(self, clips: np.ndarray, epochs: np.ndarray, *, pinned: bool = False) -> Batch:
        """Clips by number, of each the view whose turn it is in its epoch."""
        rows = self._where["row"][clips] + turn(clips, epochs, self._where["views"][clips])
        return Batch(self.rows(self._where["shard"][clips], rows, pinned=pinned), clips, epochs)

    def views(self, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All views of some clips, one clip after the other: int64 shards, rows, and whose in `clips`."""
        shards, first, views = (self._where[column][clips] for column in ("shard", "row", "views"))
        rows = [np.arange(row, row + count) for row, count in zip(first, views, strict=True)]
        return np.repeat(shards, views), np.concatenate(rows), np.repeat(np.arange(len(clips)), views)

    def videos(self) -> list[np.ndarray]:
        """The clips of each video, or of each annotated part of one: int64 numbers, in order."""
        ids = videos_of(self.known["clip_id"]).to_pylist()
        found: dict[str, list[int]] = {}
        for number, name in enumerate(ids):
            found.setdefault(name, []).append(number)
        return [np.array(numbers, dtype=np.int64) for numbers in found.values()]

    def rows(self, shards: np.ndarray, rows: np.ndarray, *, pinned: bool = False) -> dict[str, torch.Tensor]:
        """Rows of shards, copied once: from the mapped file to where the GPU fetches them, if `pinned`."""
        tubes = {
            tube.name: torch.empty(len(rows), *tube.shape, dtype=torch.uint8, pin_memory=pinned)
            for tube in self.plan.tubes
        }
        places = {name: tensor.numpy() for name, tensor in tubes.items()}
        for k in np.lexsort((rows, shards)):  # as they lie in the files
            number, offset = divmod(int(rows[k]), self._open(int(shards[k])).batch_rows)
            found = self._arrays(int(shards[k]), number)
            for name, place in places.items():
                place[k] = found[name][offset]
        return tubes

    def _reader(self, shard: int) -> ShardReader:
        return ShardReader(self.files[shard].location)

    def _pixels(self, shard: int, number: int) -> Mapping[str, np.ndarray]:
        """The wanted tubes of a record batch, where they lie."""
        reader = self._open(shard)
        held = tube_arrays(reader.batch(number), reader.plan)
        return reader.plan.take(held, self.plan)


class LiveDataset:
    """The clips of videos, or images, that are decoded when they are read.

    known: a row for each clip: what its list says of it, and `clip_id`.
    """

    def __init__(self, name: str, videos: Videos, split: str | tuple[str, ...] | None = None):
        """SpecError if no clip is of this, or one, split."""
        inputs = of_split(videos.listing.inputs, split, name)
        self.name, self.plan = name, videos.plan
        self.videos = replace(videos, listing=replace(videos.listing, inputs=inputs))
        ids = [input_id(item) for item in inputs.select(["uri", "start_seconds", "end_seconds"]).to_pylist()]
        self.known = inputs.append_column("clip_id", pa.array(ids))

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def digest(self) -> str:
        """Of what the order depends on: which clips there are."""
        return _digest(f"{name}\n" for name in self.known["clip_id"].to_pylist())

    def order(self, seed: int) -> Order:
        """The stream of its clips: that of as many in one shard."""
        return Order([len(self)], seed)

    def read(self, clips: np.ndarray, epochs: np.ndarray, *, pinned: bool = False) -> Batch:
        """Clips by number, decoded here, as many at a time as torch has threads."""
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return self.batch(epochs, threads.map(self._first_found, clips, epochs), pinned=pinned)

    def batch(self, epochs: np.ndarray, found: Iterable[Found], *, pinned: bool = False) -> Batch:
        """What was found for each place of a batch."""
        tubes = {
            tube.name: torch.empty(len(epochs), *tube.shape, dtype=torch.uint8, pin_memory=pinned)
            for tube in self.plan.tubes
        }
        places = {name: tensor.numpy() for name, tensor in tubes.items()}
        clips, failures = np.empty_like(epochs), list[Failure]()
        for k, one in enumerate(found):
            for name, place in places.items():
                place[k] = one.tubes[name]
            clips[k] = one.clip
            failures += one.failures
        return Batch(tubes, clips, epochs, tuple(failures))

    def _first_found(self, clip: int, epoch: int) -> Found:
        search = Search(self.videos, int(clip), int(epoch))
        while (found := search.take(self.videos.cut(search.clip, search.epoch))) is None:
            pass
        return found


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _clips(reader: ShardReader, number: int, wanted: Plan) -> pa.Table:
    """The clips of a shard; views of one clip follow each other, and differ in what their ids end in."""
    require(reader.plan, wanted, reader.location.path)
    known = reader.columns(KNOWN)
    clips = pc.replace_substring_regex(known["clip_id"], "/[0-9]+$", "").to_numpy()
    first = np.flatnonzero(np.append(True, clips[1:] != clips[:-1])[: len(clips)])
    views = np.diff(np.append(first, len(clips)))
    places = {"shard": np.full(len(first), number), "row": first, "views": views}
    known = known.take(pa.array(first))
    for name, values in places.items():
        known = known.append_column(name, pa.array(values, pa.int64()))
    return known
