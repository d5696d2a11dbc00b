"""Clips straight from videos: each is decoded when a training step wants it, and nothing is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.attempts import bounded
from pipeline.corpus import Media, open_listed, read_corpus
from pipeline.cut import cut
from pipeline.errors import Failure, SpecError, StorageError, failure_of
from pipeline.limits import Limits
from pipeline.order import candidates, turn
from pipeline.plan import Plan
from pipeline.rows import input_id
from pipeline.sampling import Sampling
from pipeline.storage import locate, write_atomic
from pipeline.tables import KNOWN
from pipeline.video import read_view

Tubes = dict[str, np.ndarray]

TRIES = 32  # clips that may fail one after the other before it is taken for the machine's fault


@dataclass(frozen=True)
class Listing:
    """Videos, or images, as they were listed.

    inputs: a row for each of them, or for each annotated part: tables.KNOWN and `version`.
    """

    root: str
    media: Media
    inputs: pa.Table

    @classmethod
    def of(cls, path: str, field: str) -> Listing:
        """What a folder, a glob or a table names. SpecError if it is nothing, or videos as well as images."""
        try:
            corpus = read_corpus(path)
            table = pa.concat_tables(chunk.select([*KNOWN, "media", "version"]) for chunk in corpus.chunks)
        except SpecError as error:  # which calls it input.path
            raise SpecError(field, *error.args[1:]) from None
        kinds = table["media"].unique().to_pylist()
        if len(kinds) > 1:
            raise SpecError(field, path, "names videos and images; make it two datasets, one of each")
        return cls(corpus.root, kinds[0], table.drop_columns("media").combine_chunks())

    def write(self, path: str) -> None:
        """Keep it, so that whoever comes later sees the same."""
        metadata = {"root": self.root, "media": self.media}
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, self.inputs.schema.with_metadata(metadata)) as writer:
            writer.write_table(self.inputs)
        write_atomic(locate(path), sink.getvalue().to_pybytes())

    @classmethod
    def read(cls, path: str) -> Listing:
        """What `write` has kept."""
        with pa.memory_map(path) as source:
            table = pa.ipc.open_file(source).read_all()
        metadata = table.schema.metadata
        media: Media = "image" if metadata[b"media"] == b"image" else "video"
        return cls(metadata[b"root"].decode(), media, table)


@dataclass(frozen=True)
class Videos:
    """The clips of a listing, one for each of its rows.

    A clip's views are all that the sampling makes of a video, its clips times its crops; one is decoded at a
    time, so any number of them costs the same. plan: what one is cut into.
    """

    listing: Listing
    sampling: Sampling
    plan: Plan
    limits: Limits = field(default_factory=Limits)

    def __len__(self) -> int:
        return int(self.listing.inputs.num_rows)

    def name(self, clip: int) -> str:
        """What a clip is called: its file, and which part of that."""
        return input_id(self._item(clip))

    def _item(self, clip: int) -> dict[str, Any]:
        (item,) = self.listing.inputs.slice(clip, 1).to_pylist()
        return item

    def cut(self, clip: int, epoch: int) -> Tubes | Failure:
        """The view of a clip whose turn it is in an epoch, {tube name: uint8 of `tube.shape`}; or why not."""
        item = self._item(clip)
        sampling = self.sampling if self.listing.media == "video" else self.sampling.still

        def pick(views: int) -> int:
            return int(turn(np.array([clip]), np.array([epoch]), np.array([views]))[0])

        try:
            place, _ = open_listed(self.listing.root, item)
            span = (item["start_seconds"], item["end_seconds"])
            return cut(read_view(place, sampling, self.plan, pick, span, self.limits).frames, self.plan)
        except Exception as error:
            return failure_of(input_id(item), error)


def cut_bounded(videos: Videos, clip: int, epoch: int) -> Tubes | Failure:
    """`Videos.cut` in a process of its own, which ends if a library hangs."""
    with bounded(videos.limits.timeout_seconds):
        return videos.cut(clip, epoch)


@dataclass(frozen=True)
class Found:
    """A clip that stands in a place of a batch, and why others do not."""

    clip: int
    tubes: Tubes
    failures: tuple[Failure, ...]


class Search:
    """For a clip that can be read: the one that is wanted, or others in its place, the same wherever asked.

    clip: which to try next, as in `epoch`.
    """

    def __init__(self, videos: Videos, clip: int, epoch: int) -> None:
        self._candidates = candidates(clip, epoch, len(videos))
        self._root, self._failures = videos.listing.root, list[Failure]()
        self.clip, self.epoch = next(self._candidates), epoch

    def take(self, found: Tubes | Failure) -> Found | None:
        """What came of the try; None: there must be another one.

        Raises:
            StorageError: so many failed that it must be the place where they lie.
        """
        if not isinstance(found, Failure):
            return Found(self.clip, found, tuple(self._failures))
        self._failures.append(found)
        if len(self._failures) == TRIES:
            last = f"the last of them {found.uri} ({found.reason}: {found.message})"
            raise StorageError(
                f"{self._root}: {TRIES} of {TRIES} clips cannot be read, {last}; is it all there?"
            )
        self.clip = next(self._candidates)
        return None
