"""Joining a run's small files: embeddings into parts of PART_BYTES, failures into one file (contract C6).

A part's metadata says which unit files it holds, so a lost manifest can be built again, and a unit that has
become void can be left out of a part that is written anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commits import File, Run
from pipeline.errors import SpecError
from pipeline.generations import Void
from pipeline.shards import FAILURES
from pipeline.storage import Location, atomic_file

PART_BYTES = 128 << 20
JOINED = b"tubelet.joined"  # [[unit file, rows], ...]


@dataclass(frozen=True)
class Slice:
    """Where a unit's rows lie now: in its own file, or in a part that is dissolved."""

    unit_file: File
    path: str
    first_row: int = 0


@dataclass(frozen=True)
class Arrangement:
    """What is to become of a run's unit files: parts that stay, and parts to be written."""

    kept: list[str]
    to_write: list[tuple[str, list[Slice]]]


def arrange(run: Run, files: Sequence[File], generation: int, part_bytes: int = PART_BYTES) -> Arrangement:
    """Group unit files, in their order, into parts; those that earlier calls have written stay if they can.

    Raises:
        SpecError: a unit's rows are neither in its own file nor in a part.
    """
    wanted = {file.path: file for file in files}
    parts = {name: _joined(run.place / name) for name in _names(run, "embeddings")}
    kept: list[str] = []
    held: set[str] = set()
    spare: dict[str, Slice] = {}
    for part, members in sorted(parts.items(), reverse=True):  # the last written first
        if all(path in wanted and path not in held for path, _ in members):
            kept.append(part)
            held.update(path for path, _ in members)
            continue
        row = 0
        for path, rows in members:
            if path in wanted:
                spare.setdefault(path, Slice(wanted[path], part, row))
            row += rows
    there = _names(run, "units")
    slices = []
    for file in files:
        if file.path in held:
            continue
        if file.path not in there and file.path not in spare:
            problem = (
                f"{file.path} is in no part of embeddings/, and its unit is committed; delete "
                f"commits/{file.path.removeprefix('units/').removesuffix('.parquet')}.json, then run again"
            )
            raise SpecError("output.path", run.uri, problem)
        slices.append(Slice(file, file.path) if file.path in there else spare[file.path])
    free = (name for n in range(10**6) if (name := part_name(run, generation, n)) not in parts)
    return Arrangement(sorted(kept), list(zip(free, _grouped(slices, part_bytes), strict=False)))


def part_name(run: Run, generation: int, number: int) -> str:
    return f"embeddings/part-{generation:05d}-{number:05d}-{run.fingerprint}.parquet"


def join(run: Run, name: str, slices: Sequence[Slice]) -> File:
    """Write a part."""
    joined = {JOINED: json.dumps([[s.unit_file.path, s.unit_file.rows] for s in slices])}
    rows = 0
    with atomic_file(run.place / name) as sink:
        writer = None
        read, table = "", None
        for one in slices:
            if one.path != read:
                read, table = one.path, _read(run.place / one.path)
            assert table is not None
            mine = table.slice(one.first_row, one.unit_file.rows).replace_schema_metadata(joined)
            if writer is None:
                writer = pq.ParquetWriter(sink, mine.schema, compression="zstd")
            writer.write_table(mine)
            rows += mine.num_rows
        if writer is not None:
            writer.close()
    written = sink.done()
    return File(name, rows, written.size_bytes, written.sha256)


def measure(run: Run, name: str) -> File:
    """What a manifest says of a part that is there already."""
    found = (run.place / name).read_bytes()
    rows = pq.read_metadata(pa.BufferReader(found)).num_rows
    return File(name, rows, len(found), hashlib.sha256(found).hexdigest())


def live_failures(run: Run, units: Collection[int], void: Void) -> pa.Table:
    """The failures of some units that still hold, from the units' own files and from such as were joined."""
    left = set(units)
    tables = [FAILURES.empty_table()]
    own_first = sorted(_names(run, "failures"), key=lambda name: ("/part-" in name, name))
    for name in own_first:
        table = _read(run.place / name)
        table = table.filter(pa.array([unit in left for unit in table["unit"].to_pylist()], pa.bool_()))
        left.difference_update(table["unit"].to_pylist())
        tables.append(void.live(table))
    return pa.concat_tables(tables)


def join_failures(run: Run, units: Collection[int], void: Void, generation: int) -> File | None:
    """Write the failures of some units that still hold into one file."""
    live = live_failures(run, units, void)
    if not live.num_rows:
        return None
    return run.write_table(f"failures/part-{generation:05d}-{run.fingerprint}.parquet", live)


def _names(run: Run, folder: str) -> Collection[str]:
    """This run's whole files in a folder."""
    return {
        f"{folder}/{info.base_name}"
        for info in (run.place / folder).files()
        if info.base_name.endswith(f"-{run.fingerprint}.parquet") and info.base_name[0] != "."
    }


def _joined(place: Location) -> list[tuple[str, int]]:
    with place.filesystem.open_input_file(place.path) as file:
        metadata = pq.read_schema(file).metadata or {}
    return [(path, rows) for path, rows in json.loads(metadata.get(JOINED, b"[]"))]


def _grouped(slices: Sequence[Slice], part_bytes: int) -> Iterator[list[Slice]]:
    group: list[Slice] = []
    size = 0
    for one in slices:
        if group and size + one.unit_file.bytes > part_bytes:
            yield group
            group, size = [], 0
        group.append(one)
        size += one.unit_file.bytes
    if group:
        yield group


def _read(place: Location) -> pa.Table:
    with place.filesystem.open_input_file(place.path) as source:
        return pq.read_table(source)
