"""Inputs (folder, glob, list, table) -> a frozen list of work units, which all else follows from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs as pafs

from pipeline.errors import SpecError
from pipeline.plan import Plan
from pipeline.sampling import Sampling, count_windows
from pipeline.storage import Location, locate
from pipeline.tables import (
    IMAGE_SUFFIXES,
    KNOWN,
    TABLE_SUFFIXES,
    complete,
    read_table,
    refuse_doubles,
    suffix_of,
)

Media = Literal["video", "image"]

VIDEO_SUFFIXES = frozenset(
    ".3gp .asf .avi .divx .f4v .flv .gif .h264 .264 .h265 .265 .hevc .ivf .m2ts .m2v .m4v .mjpeg .mjpg .mkv"
    " .mov .mp4 .mpeg .mpg .mts .mxf .nut .obu .ogv .qt .ts .vob .webm .wmv .y4m".split()
)

WILDCARD = re.compile(r"[*?\[]")
# Small corpora are cut finer than `unit_bytes`, so that more than one worker has something to do.
UNITS_AT_LEAST = 16


@dataclass(frozen=True)
class Corpus:
    """What to read: one row per input, in a fixed order, and the root that relative uris start from."""

    root: str
    inputs: pa.Table  # KNOWN columns, `media`, and the caller's own
    skipped: dict[str, int]  # files of a listed folder that are neither video nor image, by suffix

    @property
    def extra(self) -> list[str]:
        return [name for name in self.inputs.column_names if name not in KNOWN and name != "media"]


def read_corpus(path: str | tuple[str, ...], root: str | None = None) -> Corpus:
    """List a corpus.

    Args:
        path: a folder (searched all the way down for video and image files), a glob, a file, several of
            these, or one table (.csv .tsv .parquet .jsonl .ndjson, or .txt with a uri a line) of inputs.
        root: where relative uris start; by default the folder itself, the part of a glob before its first
            wildcard, what several paths have in common, or the table's folder.

    Raises:
        SpecError: nothing there, or a table that cannot be used.
    """
    paths = (path,) if isinstance(path, str) else path
    skipped: dict[str, int] = {}
    if not paths:
        raise SpecError("input.path", path, "names nothing; give a folder, a glob, a file or a table")
    if len(paths) == 1 and suffix_of(paths[0]) in TABLE_SUFFIXES and _is_file(paths[0]):
        base, inputs = root or _like(paths[0], _parent(locate(paths[0]).path)), read_table(paths[0])
    else:
        listed = [_list(one, skipped) for one in paths]
        start = locate(root).path if root else os.path.commonpath([folder for folder, _ in listed])
        base = root or _like(paths[0], start)
        files = dict.fromkeys(file for _, found in listed for file in found)
        inputs = pa.table(
            {"uri": pa.array([f.removeprefix(f"{start.rstrip('/')}/") for f in files], pa.string())}
        )
    if not inputs.num_rows:
        ignored = f" ({_counts(skipped)} are neither video nor image)" if skipped else ""
        raise SpecError("input.path", path, f"no video or image in it{ignored}")
    inputs = complete(inputs)
    refuse_doubles(inputs, path)
    return Corpus(base, inputs, skipped)


def open_input(root: str, uri: str) -> Location:
    """Where an input of a corpus lies."""
    return locate(uri) if "://" in uri or uri.startswith("/") else locate(root) / uri


def freeze(
    corpus: Corpus,
    sampling: Sampling,
    plans: dict[Media, Plan],
    unit_bytes: int,
    durations: Callable[[pa.Table], Iterable[float | None]],
) -> pa.Table:
    """Pack a corpus into work units: a pure function of its arguments.

    Args:
        plans: what one view of a video, and of an image, is cut into.
        unit_bytes: tubes of a unit; a video with more of them is split into parts of consecutive clips.
        durations: seconds of each of some inputs, None where unknown; asked only for sliding windows.

    Returns:
        One row per unit: `unit`, `media`, `clips` (how many are expected) and `items`, a list of inputs
        with `first_clip` and `stop_clip` (None: to the end), in corpus order. Videos come first.
    """
    tables, first_unit = [], 0
    media_of = corpus.inputs["media"]
    per_view = {media: plan.bytes_per_clip * sampling.crops for media, plan in plans.items()}
    for media in ("video", "image"):
        inputs = corpus.inputs.filter(pc.equal(media_of, media))
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
        total_bytes = int(clips.sum()) * per_view[media]
        target = max(per_view[media], min(unit_bytes, -(-total_bytes // UNITS_AT_LEAST)))
        most = max(1, unit_bytes // per_view[media])
        table = _pack(inputs.drop_columns("media"), media, clips, most, target // per_view[media], first_unit)
        first_unit += table.num_rows
        tables.append(table)
    return pa.concat_tables(tables)


def _pack(
    inputs: pa.Table, media: Media, clips: np.ndarray, most: int, unit_clips: int, first_unit: int
) -> pa.Table:
    """Split inputs of more than `most` clips, then pack neighbours into units of about `unit_clips`."""
    parts = np.maximum(1, -(-clips // most))
    of = np.repeat(np.arange(len(clips)), parts)
    part = np.arange(len(of)) - np.repeat(np.cumsum(parts) - parts, parts)
    first = part * most
    size = np.minimum(clips[of] - first, most)
    # A last part is open-ended: what a header says of a duration sizes units, and decides nothing else.
    stop = pa.array(first + most, mask=part == parts[of] - 1)
    items = (
        inputs.take(pa.array(of))
        .append_column("first_clip", pa.array(first))
        .append_column("stop_clip", stop)
    )
    before = np.cumsum(size) - size
    unit = np.unique(before // max(1, unit_clips), return_inverse=True)[1]
    starts = np.flatnonzero(np.diff(unit, prepend=-1))
    offsets = pa.array(np.append(starts, len(unit)), pa.int32())
    structs = pa.StructArray.from_arrays(
        [items[name].combine_chunks() for name in items.column_names], names=items.column_names
    )
    return pa.table(
        {
            "unit": pa.array(np.arange(len(starts)) + first_unit),
            "media": pa.array([media] * len(starts)),
            "clips": pa.array(np.add.reduceat(size, starts)),
            "items": pa.ListArray.from_arrays(offsets, structs),
        }
    )


def _span_lengths(inputs: pa.Table, durations: Callable[[pa.Table], Iterable[float | None]]) -> list[float]:
    starts, ends = (inputs[name].to_pylist() for name in ("start_seconds", "end_seconds"))
    unknown = [i for i, end in enumerate(ends) if end is None]
    probed = dict(zip(unknown, durations(inputs.take(unknown)) if unknown else (), strict=True))
    return [
        max(0.0, (probed[i] or 0.0 if end is None else end) - (start or 0.0))
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _list(path: str, skipped: dict[str, int]) -> tuple[str, list[str]]:
    """(folder where relative names start, files in order) of a folder, a glob or a file."""
    place = locate(path, "input.path")
    try:
        info = place.info()
    except (OSError, pa.ArrowException) as error:
        raise SpecError("input.path", path, f"cannot be looked at: {error}") from None
    if info.type == pafs.FileType.File:
        if suffix_of(path) in TABLE_SUFFIXES:
            raise SpecError("input.path", path, "a table stands alone; join the tables into one")
        return _parent(place.path), [place.path]
    if info.type == pafs.FileType.NotFound and (wild := WILDCARD.search(place.path)):
        found = ArrowFSWrapper(place.filesystem).glob(place.path, detail=True)
        start = _parent(place.path[: wild.start()])
        files = _media_only([name for name, one in found.items() if one["type"] == "file"], start, skipped)
        if not found:
            raise SpecError("input.path", path, "the pattern matches no file")
        return start, files
    if info.type != pafs.FileType.Directory:
        raise SpecError("input.path", path, "no such file or folder")
    inside = _walk(place.path) if place.is_local else (i.path for i in place.files(recursive=True))
    return place.path, _media_only(inside, place.path, skipped)


def _walk(root: str) -> Iterator[str]:
    """Every file below a local folder, links followed; one that dangles is a file, too, and fails later."""

    def refuse(error: OSError) -> None:
        raise SpecError("input.path", error.filename, f"cannot be listed ({error.strerror})")

    for folder, inside, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder) + os.sep
        # A link to a folder that this one lies in would be followed without end.
        inside[:] = [d for d in inside if not real.startswith(os.path.realpath(f"{folder}/{d}") + os.sep)]
        yield from (f"{folder.rstrip('/')}/{name}" for name in names)


def _media_only(files: Iterable[str], folder: str, skipped: dict[str, int]) -> list[str]:
    """Video and image files in order; hidden ones are passed over, others counted in `skipped`."""
    media = []
    for file in sorted(files):
        if "/." in f"/{file.removeprefix(folder).lstrip('/')}":
            continue
        suffix = suffix_of(file)
        if suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
            media.append(file)
        else:
            skipped[suffix or "no suffix"] = skipped.get(suffix or "no suffix", 0) + 1
    return media


def _is_file(path: str) -> bool:
    """False for a folder that is named like a table; what is not there is left to the reader to refuse."""
    try:
        return locate(path, "input.path").info().type == pafs.FileType.File
    except (OSError, pa.ArrowException):
        return False


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _like(uri: str, path: str) -> str:
    """`path` on the filesystem of `uri`, written the way `uri` is: with its scheme and query."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme in {"file", "package"}:
        return path
    query = rest.partition("?")[2]
    return f"{scheme}://{path}" + (f"?{query}" if query else "")


def _counts(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(skipped.items()))
