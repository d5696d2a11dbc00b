"""Some inputs of a corpus, spread evenly over it, decoded as workers would: what they give and take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.apart import Apart, CrashedError
from pipeline.attempts import Attempts
from pipeline.commits import Receipt, Run
from pipeline.corpus import Corpus, Media
from pipeline.errors import Failure
from pipeline.probing import probe_seconds
from pipeline.sampling import count_windows
from pipeline.shards import meta_fields
from pipeline.stages import Cutting, peak_memory_bytes
from pipeline.units import PART_CLIPS, REDOES

# Of each medium: more than a minute's worth of decoding, and no more than a look at the largest corpus takes.
MOST = 512
HEADER_SECONDS = 10.0  # for reading one


class Spread:
    """Every 1st, 2nd, 4th ... row of a stream, however long it turns out to be: MOST of them or more."""

    def __init__(self) -> None:
        self.seen = 0
        self._step = 1
        self._rows: list[tuple[int, dict[str, Any]]] = []

    def add(self, table: pa.Table) -> None:
        while (self.seen + table.num_rows) // self._step > 2 * MOST:
            self._step *= 2
            self._rows = [(k, row) for k, row in self._rows if k % self._step == 0]
        first = -self.seen % self._step
        numbers = range(first, table.num_rows, self._step)
        some = table.take(pa.array(numbers, pa.int64())).to_pylist()
        self._rows += [(self.seen + k, row) for k, row in zip(numbers, some, strict=True)]
        self.seen += table.num_rows

    def rows(self) -> Iterator[dict[str, Any]]:
        """They, in an order in which the first few are spread evenly, too."""
        bits = max(1, (len(self._rows) - 1).bit_length())
        for k in range(1 << bits):
            place = int(f"{k:0{bits}b}"[::-1], 2)
            if place < len(self._rows):
                yield self._rows[place][1]


def spread_over(corpus: Corpus) -> tuple[Corpus, dict[Media, Spread]]:
    """The same corpus, and for each medium what is picked of it while its chunks are read."""
    spreads: dict[Media, Spread] = {"video": Spread(), "image": Spread()}

    def chunks() -> Iterator[pa.Table]:
        for chunk in corpus.chunks:
            for media, spread in spreads.items():
                spread.add(chunk.filter(pc.equal(chunk["media"], media)))
            yield chunk

    return replace(corpus, chunks=chunks()), spreads


@dataclass(frozen=True)
class Part:
    """What became of one sampled input, or of a part of it that stands for all of it.

    planned_views: of the whole input by its header. share: of these, what the part was to give. views: that
    it gave. file_bytes: of these in a shard. meta: their rows without tubes.
    """

    planned_views: int
    share: float
    views: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    file_bytes: int = 0
    meta: pa.Table | None = None
    peak_memory_bytes: int = 0

    @property
    def failed(self) -> bool:
        return bool(self.reasons) and not self.views


@dataclass
class Sample:
    """Of one medium: how many inputs there are, and what sampled ones gave; `unfinished` took too long."""

    inputs: int
    parts: list[Part] = field(default_factory=list)
    unfinished: int = 0

    @property
    def failed(self) -> int:
        return sum(part.failed for part in self.parts)

    @property
    def reasons(self) -> Counter[str]:
        """Why they did: of each input the first reason."""
        return Counter(next(iter(part.reasons)) for part in self.parts if part.failed)

    @property
    def population(self) -> int:
        """The inputs; one more than were sampled at least, unless these were decoded as a whole."""
        whole = len(self.parts) == self.inputs and all(part.share == 1 for part in self.parts)
        return self.inputs if whole else max(self.inputs, len(self.parts) + 1)

    def sizes(self) -> list[float]:
        return [float(part.planned_views) for part in self.parts]

    def amounts(self, of: Callable[[Part], float]) -> list[float]:
        """Of each whole input, if the rest of it is like the part that was decoded."""
        return [of(part) / part.share for part in self.parts]


def measure(
    cutting: Cutting, spreads: Mapping[Media, Spread], seconds: float, apart: Apart
) -> dict[Media, Sample]:
    """Decode inputs one after the other, of each medium in turn, in a process apart.

    None is begun after `seconds`; one that is not done after twice that is given up.

    Raises:
        SpecError, StorageError: what would end the run as well.
    """
    samples = {media: Sample(spread.seen) for media, spread in spreads.items() if spread.seen}
    begun = time.monotonic()
    for media, row in _in_turn(spreads):
        gone = time.monotonic() - begun
        if gone >= seconds:
            break
        sample = samples[media]
        try:
            sample.parts.append(apart.ask(2 * seconds - gone, decoded, cutting, media, row))
        except TimeoutError:
            sample.unfinished += 1
        except CrashedError:
            views = (cutting.sampling.clips or 1) * cutting.sampling.views
            sample.parts.append(Part(views, 1.0, reasons={"crashed": 1}))
    return samples


def _in_turn(spreads: Mapping[Media, Spread]) -> Iterator[tuple[Media, dict[str, Any]]]:
    waiting = {media: spread.rows() for media, spread in spreads.items()}
    while waiting:
        for media in list(waiting):
            row = next(waiting[media], None)
            if row is None:
                del waiting[media]
            else:
                yield media, row


def header_seconds(cutting: Cutting, uri: str, apart: Apart) -> float | None:
    """How long a video is by its header; None if that cannot be read."""
    try:
        return apart.ask(HEADER_SECONDS, probe_seconds, cutting.root, uri, cutting.limits)
    except (CrashedError, TimeoutError):
        return None


def decoded(cutting: Cutting, media: Media, row: dict[str, Any]) -> Part:
    """Of one input what its worker would make of it; of one with many windows some in the middle of it."""
    windows, first, stop = _window(cutting, media, row)
    window = {"first_clip": first, "stop_clip": stop, **dict.fromkeys(REDOES)}
    item = {**{name: value for name, value in row.items() if name != "media"}, **window}
    if cutting.identity == "content":
        item["version"] = None  # what a run would have hashed beforehand
    attempts = Attempts(Run("", ""), 0, "", cutting.attempts + 1, cutting.limits.timeout_seconds)
    receipt, failures = Receipt(0), list[Failure]()
    file_bytes, views, metas = 0, 0, []
    names = [one.name for one in meta_fields(cutting.schema(media))]
    for batch in cutting.unit({"media": media, "items": [item]}, attempts, receipt, failures):
        file_bytes += pa.ipc.get_record_batch_size(batch)
        views += batch.num_rows
        metas.append(pa.Table.from_batches([batch]).select(names))
    return Part(
        windows * cutting.sampling.views,
        1.0 if stop is None else (stop - first) / windows,
        views,
        Counter(failure.reason for failure in failures),
        receipt.decode_seconds,
        receipt.decode_cpu_seconds,
        file_bytes,
        pa.concat_tables(metas) if metas else None,
        peak_memory_bytes(),
    )


def _window(cutting: Cutting, media: Media, row: dict[str, Any]) -> tuple[int, int, int | None]:
    """(how many clips the input should have, the first one to decode, the first one not to: None is all)"""
    sampling = cutting.sampling
    if media == "image":
        return 1, 0, None
    if sampling.clips is not None:
        return sampling.clips, 0, None
    assert sampling.every_seconds is not None
    end = row["end_seconds"]
    if end is None:
        end = probe_seconds(cutting.root, row["uri"], cutting.limits) or 0.0
    windows = count_windows(max(0.0, end - (row["start_seconds"] or 0.0)), sampling.every_seconds)
    if windows <= PART_CLIPS:
        return windows, 0, None
    first = (windows - PART_CLIPS) // 2
    return windows, first, first + PART_CLIPS
