"""Inputs -> work units (contract C6): a pure function of the corpus and the spec, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus import Media
from pipeline.errors import SpecError
from pipeline.plan import Plan
from pipeline.sampling import Sampling, count_windows

# Small corpora are cut finer than `unit_bytes`, so that more than one worker has something to do.
UNITS_AT_LEAST = 16
PART_CLIPS = 8  # of a long video at least: to open a file for fewer costs more than it gains

# Which earlier (unit, item of it) an item is to take the place of; null for an input that is new.
REDOES = {"redoes_unit": pa.int64(), "redoes_item": pa.int64()}
# What a plan says of an item and its rows do not.
PLANNED = ("first_clip", "stop_clip", "version", *REDOES)

Durations = Callable[[pa.Table], Iterable[float | None]]


def pack(
    chunks: Iterable[pa.Table],
    sampling: Sampling,
    plans: Mapping[Media, Plan],
    unit_bytes: int,
    durations: Durations,
) -> Iterator[pa.Table]:
    """Pack inputs into units of one medium each; what is held at a time is a chunk, whatever there is in all.

    Args:
        chunks: of a corpus; they may have the columns of REDOES.
        plans: what one view of a video, and of an image, is cut into.
        unit_bytes: tubes of a unit at most; a video with more is split into parts of consecutive clips,
            and so is one that has more windows than a fair share of a small corpus.
        durations: seconds of each of some inputs, None where unknown; asked only for sliding windows.

    Yields:
        Tables of units: `media`, `clips` (how many are expected) and `items`, a list of inputs with
        `first_clip` and `stop_clip` (None: to the end), in corpus order.
    """
    per_view = {media: plan.bytes_per_clip * sampling.views for media, plan in plans.items()}
    sized = _sized(chunks, sampling, plans, durations)
    first: list[tuple[Media, pa.Table, np.ndarray]] = []
    totals = dict.fromkeys(plans, 0)
    for media, inputs, clips in sized:
        first.append((media, inputs, clips))
        totals[media] += int(clips.sum()) * per_view[media]
        if max(totals.values()) >= UNITS_AT_LEAST * unit_bytes:
            totals = dict.fromkeys(plans, UNITS_AT_LEAST * unit_bytes)  # it is no small corpus
            break
    packers = {}
    for media, view_bytes in per_view.items():
        target = max(view_bytes, min(unit_bytes, -(-totals[media] // UNITS_AT_LEAST)))
        unit_clips, most = max(1, target // view_bytes), max(1, unit_bytes // view_bytes)
        if sampling.every_seconds is not None:  # neighbouring windows hardly share what is decoded
            most = min(most, max(PART_CLIPS, unit_clips))
        packers[media] = _Packer(media, most, unit_clips)
    for media, inputs, clips in chain(first, sized):
        yield from packers[media].add(inputs, clips)
    for packer in packers.values():
        yield from packer.rest()


def _sized(
    chunks: Iterable[pa.Table], sampling: Sampling, plans: Mapping[Media, Plan], durations: Durations
) -> Iterator[tuple[Media, pa.Table, np.ndarray]]:
    """(medium, inputs of it, clips of each)"""
    media: Media
    for chunk in chunks:
        for name, kind in REDOES.items():
            if name not in chunk.column_names:
                chunk = chunk.append_column(name, pa.nulls(chunk.num_rows, kind))
        for media in ("video", "image"):
            inputs = chunk.filter(pc.equal(chunk["media"], media))
            if not inputs.num_rows:
                continue
            if media not in plans:
                names = ", ".join(inputs["uri"][:3].to_pylist())
                raise SpecError(
                    "input.path", names, "an image, but this model has no image plan; leave images out"
                )
            if media == "image":
                clips = np.ones(inputs.num_rows, np.int64)
            elif sampling.clips is not None:
                clips = np.full(inputs.num_rows, sampling.clips, np.int64)
            else:
                assert sampling.every_seconds is not None
                seconds = _span_lengths(inputs, durations)
                clips = np.array([count_windows(s, sampling.every_seconds) for s in seconds], np.int64)
            yield media, inputs.drop_columns("media"), clips


class _Packer:
    """Fills units of one medium with neighbours; the last one may go on with the next chunk."""

    def __init__(self, media: Media, most_clips: int, unit_clips: int):
        self._media, self._most, self._unit_clips = media, most_clips, unit_clips
        self._clips = 0  # so far
        self._items: list[pa.Table] = []  # of the unit that is being filled
        self._sizes = np.empty(0, np.int64)
        self._units = np.empty(0, np.int64)

    def add(self, inputs: pa.Table, clips: np.ndarray) -> Iterator[pa.Table]:
        """The units that are full now."""
        parts = np.maximum(1, -(-clips // self._most))
        of = np.repeat(np.arange(len(clips)), parts)
        part = np.arange(len(of)) - np.repeat(np.cumsum(parts) - parts, parts)
        first = part * self._most
        sizes = np.minimum(clips[of] - first, self._most)
        # A last part is open-ended: what a header says of a duration sizes units, and decides nothing else.
        stop = pa.array(first + self._most, mask=part == parts[of] - 1)
        items = inputs.take(pa.array(of)).append_column("first_clip", pa.array(first))
        self._items.append(items.append_column("stop_clip", stop))
        before = self._clips + np.cumsum(sizes) - sizes
        self._clips += int(sizes.sum())
        self._sizes = np.append(self._sizes, sizes)
        self._units = np.append(self._units, before // self._unit_clips)
        full = int(np.searchsorted(self._units, self._units[-1]))
        if full:
            yield self._take(full)

    def rest(self) -> Iterator[pa.Table]:
        """The last unit."""
        if len(self._units):
            yield self._take(len(self._units))

    def _take(self, rows: int) -> pa.Table:
        items = pa.concat_tables(self._items)
        full, self._items = items.slice(0, rows), [items.slice(rows).combine_chunks()]
        sizes, self._sizes = self._sizes[:rows], self._sizes[rows:]
        units, self._units = self._units[:rows], self._units[rows:]
        return units_of(full, self._media, sizes, np.flatnonzero(np.diff(units, prepend=-1)))


def units_of(items: pa.Table, media: Media, clips: np.ndarray, starts: np.ndarray) -> pa.Table:
    """A table of units of consecutive items.

    Args:
        clips: of each item.
        starts: the first item of each unit.
    """
    table = items.combine_chunks()
    columns = [table[name].combine_chunks() for name in table.column_names]
    structs = pa.StructArray.from_arrays(columns, names=table.column_names)
    offsets = pa.array(np.append(starts, table.num_rows), pa.int32())
    return pa.table(
        {
            "media": pa.array([media] * len(starts)),
            "clips": pa.array(np.add.reduceat(clips, starts)),
            "items": pa.ListArray.from_arrays(offsets, structs),
        }
    )


def _span_lengths(inputs: pa.Table, durations: Durations) -> list[float]:
    starts, ends = (inputs[name].to_pylist() for name in ("start_seconds", "end_seconds"))
    unknown = [i for i, end in enumerate(ends) if end is None]
    probed = dict(zip(unknown, durations(inputs.take(unknown)) if unknown else (), strict=True))
    return [
        max(0.0, (probed[i] or 0.0 if end is None else end) - (start or 0.0))
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
