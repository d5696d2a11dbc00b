"""Inputs (folder, glob, list, table), listed a chunk at a time, always in the same order."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs as pafs

from pipeline.errors import MediaError, SpecError
from pipeline.keys import Keys, doubled, keys_of, versions_of
from pipeline.storage import Identity, Location, locate, version, version_of
from pipeline.tables import (
    CHUNK_ROWS,
    IMAGE_SUFFIXES,
    KNOWN,
    TABLE_SUFFIXES,
    complete,
    read_table,
    suffix_of,
)

Media = Literal["video", "image"]

VIDEO_SUFFIXES = frozenset(
    ".3gp .asf .avi .divx .f4v .flv .gif .h264 .264 .h265 .265 .hevc .ivf .m2ts .m2v .m4v .mjpeg .mjpg .mkv"
    " .mov .mp4 .mpeg .mpg .mts .mxf .nut .obu .ogv .qt .ts .vob .webm .wmv .y4m".split()
)

WILDCARD = re.compile(r"[*?\[]")

File = tuple[str, str | None]  # its path, and its version where the listing tells


@dataclass(frozen=True)
class Corpus:
    """What to read: one row per input, in a fixed order, and the root that relative uris start from."""

    root: str
    chunks: Iterator[pa.Table]  # to be read once: KNOWN columns, `media`, `version`, and the caller's own
    schema: pa.Schema  # of each chunk
    skipped: Mapping[str, int]  # files of a folder that are no media, by suffix, as far as chunks are read
    is_empty: bool = False

    @property
    def extra(self) -> list[str]:
        """The caller's own columns."""
        return [name for name in self.schema.names if name not in {*KNOWN, "media", "version"}]


def read_corpus(
    path: str | tuple[str, ...], root: str | None = None, *, may_be_empty: bool = False
) -> Corpus:
    """List a corpus. It is read as its chunks are; the first one is read, and checked, at once.

    Args:
        path: a folder (searched all the way down for video and image files), a glob, a file, several of
            these, or one table (.csv .tsv .parquet .jsonl .ndjson, or .txt with a uri a line) of inputs.
        root: where relative uris start; by default the folder itself, the part of a glob before its first
            wildcard, what several paths have in common, or the table's folder.

    Raises:
        SpecError: nothing there, or a table that cannot be used.
    """
    paths = (path,) if isinstance(path, str) else path
    skipped: Counter[str] = Counter()
    if not paths:
        raise SpecError("input.path", path, "names nothing; give a folder, a glob, a file or a table")
    if len(paths) == 1 and suffix_of(paths[0]) in TABLE_SUFFIXES and _is_file(paths[0]):
        base = root or _like(paths[0], _parent(locate(paths[0]).path))
        chunks = _refuse_doubles(_completed(_versioned(read_table(paths[0]), base)), path)
    else:
        listed = [_list(one, skipped) for one in paths]
        start = locate(root).path if root else os.path.commonpath([folder for folder, _ in listed])
        base = root or _like(paths[0], start)
        chunks = _drop_doubles(_completed(_tables(chain.from_iterable(f for _, f in listed), start)))
    first = next(chunks, None)
    if first is None and not may_be_empty:
        ignored = f" ({_counts(skipped)} are neither video nor image)" if skipped else ""
        raise SpecError("input.path", path, f"no video or image in it{ignored}")
    if first is None:
        return Corpus(
            base, iter(()), complete(pa.table({"uri": pa.array([], pa.string())})).schema, skipped, True
        )
    return Corpus(base, chain([first], chunks), first.schema, skipped)


def open_input(root: str, uri: str) -> Location:
    """Where an input of a corpus lies."""
    return locate(uri) if "://" in uri or uri.startswith("/") else locate(root) / uri


def open_listed(
    root: str, item: Mapping[str, Any], identity: Identity = "modified"
) -> tuple[Location, str | None]:
    """Where an input lies, and its version now. MediaError if it is not there, or not what was listed."""
    try:
        place = open_input(root, item["uri"])
        found = version_of(place, identity)
    except (SpecError, OSError, pa.ArrowException) as error:
        raise MediaError("unreadable", " ".join(str(error).split())) from error
    known = item["version"]
    if found is not None and known is not None and known != found:
        raise MediaError("changed", f"was {known} when it was listed, is {found} now")
    return place, found


def _versioned(tables: Iterable[pa.Table], root: str) -> Iterator[pa.Table]:
    """With the version of what lies on a disk; a store would have to be asked for each object."""
    start = locate(root)
    for table in tables:
        # As open_input joins them: a full path stays as it is.
        versions = [
            _local_version(os.path.join(start.path, uri)) if start.is_local and "://" not in uri else None  # noqa: PTH118 (as in _local_version)
            for uri in table["uri"].to_pylist()
        ]
        yield table.append_column("version", pa.array(versions, pa.string()))


def _completed(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    row = 1
    for table in tables:
        chunk = complete(table, row)
        row += chunk.num_rows
        if chunk.num_rows:
            yield chunk


def _refuse_doubles(chunks: Iterable[pa.Table], path: str | tuple[str, ...]) -> Iterator[pa.Table]:
    """What a table lists twice was hardly meant."""
    seen = Keys()
    for chunk in chunks:
        keys = keys_of(chunk)
        again = doubled(keys, seen)
        if again.any():
            row = chunk.slice(int(again.argmax()), 1).to_pylist()[0]
            start, end = row["start_seconds"], row["end_seconds"]
            span = "" if start is None and end is None else f" from {start} to {end} s"
            problem = f"lists {row['uri']}{span} more than once; list it once (labels: 'a;b')"
            raise SpecError("input.path", path, problem)
        seen.add(keys, versions_of(chunk))
        yield chunk


def _drop_doubles(chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Several paths may well lie in each other."""
    seen = Keys()
    for chunk in chunks:
        keys = keys_of(chunk)
        fresh = ~doubled(keys, seen)
        seen.add(keys[fresh], versions_of(chunk)[fresh])
        if fresh.any():
            yield chunk if fresh.all() else chunk.filter(pa.array(fresh))


def _tables(files: Iterator[File], start: str) -> Iterator[pa.Table]:
    folder = f"{start.rstrip('/')}/"
    while some := list(islice(files, CHUNK_ROWS)):
        uris = pa.array([path.removeprefix(folder) for path, _ in some], pa.string())
        yield pa.table({"uri": uris, "version": pa.array([known for _, known in some], pa.string())})


def _list(path: str, skipped: Counter[str]) -> tuple[str, Iterator[File]]:
    """(folder where relative names start, files in order) of a folder, a glob or a file."""
    place = locate(path, "input.path")
    try:
        info = place.info()
    except (OSError, pa.ArrowException) as error:
        raise SpecError("input.path", path, f"cannot be looked at: {error}") from None
    if info.type == pafs.FileType.File:
        if suffix_of(path) in TABLE_SUFFIXES:
            raise SpecError("input.path", path, "a table stands alone; join the tables into one")
        return _parent(place.path), iter([(place.path, version(info, local=place.is_local))])
    if info.type == pafs.FileType.NotFound and (wild := WILDCARD.search(place.path)):
        start = _parent(place.path[: wild.start()])
        return start, _media_only(_glob(Location(place.filesystem, start), place.path, path), skipped)
    if info.type != pafs.FileType.Directory:
        raise SpecError("input.path", path, "no such file or folder")
    return place.path, _media_only(_walk(place), skipped)


def _glob(folder: Location, pattern: str, path: str) -> Iterator[File]:
    """The files below a folder that a pattern matches; SpecError at the end if there was none."""
    inner = pattern.removeprefix(folder.path).lstrip("/")
    matches = re.compile(glob_translate(inner)).match
    found = False
    for file, known in _walk(folder, None if "**" in inner else inner.count("/")):
        if matches(file.removeprefix(folder.path).lstrip("/")):
            found = True
            yield file, known
    if not found:
        raise SpecError("input.path", path, "the pattern matches no file")


def _walk(folder: Location, depth: int | None = None) -> Iterator[File]:
    """Every file below a folder, by path, links followed; one that dangles is a file, too, and fails later.

    A folder is listed when it is come to, so memory is that of the largest one. Hidden ones are left out.
    """
    entries: list[tuple[str, bool, str | None]] = []  # name (a folder's ends in "/"), is it one, version
    try:
        if folder.is_local:
            with os.scandir(folder.path) as found:
                for entry in found:
                    is_folder = _is_folder(entry)
                    entries.append((f"{entry.name}/" if is_folder else entry.name, is_folder, None))
        else:
            for info in folder.filesystem.get_file_info(pafs.FileSelector(folder.path, allow_not_found=True)):
                is_folder = info.type == pafs.FileType.Directory
                name = f"{info.base_name}/" if is_folder else info.base_name
                entries.append((name, is_folder, version(info, local=False)))
    except OSError as error:
        problem = f"cannot be listed ({error.strerror or error})"
        raise SpecError("input.path", folder.path, problem) from None
    for name, is_folder, known in sorted(entries):
        inside = folder / name.removesuffix("/")
        if name.startswith("."):
            continue
        if not is_folder:
            yield inside.path, _local_version(inside.path) if folder.is_local else known
        elif depth != 0 and not (folder.is_local and _leads_back(inside.path)):
            yield from _walk(inside, None if depth is None else depth - 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_back(path: str) -> bool:
    """A link to a folder that it lies in would be followed without end."""
    link = Path(path)
    return link.is_symlink() and link.parent.resolve().is_relative_to(link.resolve())


def _local_version(path: str) -> str | None:
    """What `storage.version` says of it, for a fraction of the time."""
    try:
        found = os.stat(path)  # noqa: PTH116 (of millions: making a Path costs more than the call)
    except OSError:
        return None
    return f"{found.st_size}-{found.st_mtime_ns}"


def _media_only(files: Iterable[File], skipped: Counter[str]) -> Iterator[File]:
    """Video and image files; others are counted in `skipped`."""
    for file, known in files:
        suffix = suffix_of(file)
        if suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
            yield file, known
        else:
            skipped[suffix or "no suffix"] += 1


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


def _counts(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(skipped.items()))
