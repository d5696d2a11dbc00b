"""The frozen plan of a run's folder, in generations: what was asked at first, and what was added later.

A generation is `plan/NNNNN.parquet`, a row a unit, and a record beside it which says that it is complete.
Units are numbered through. An item may take the place of an earlier one that failed or has changed: once its
unit is committed the earlier one is void, and so is a unit all of whose items are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commits import Run
from pipeline.storage import Location, streamed_file, write_atomic

FOLDER = "plan"
PENDING = "pending.parquet"
UNITS_AT_ONCE = 256

Item = tuple[int, int]  # a unit, and which of its items


@dataclass(frozen=True)
class Generation:
    """One freezing; `inputs` are new ones, `redone` counts items that take the place of earlier ones."""

    number: int
    first_unit: int
    units: int
    clips: int
    inputs: int
    redone: int
    settings: dict[str, Any]  # what holds for all units, as the caller knows it

    @property
    def name(self) -> str:
        return f"{FOLDER}/{self.number:05d}"


def write(
    run: Run, before: Sequence[Generation], tables: Iterable[pa.Table], settings: dict[str, Any]
) -> Generation | None:
    """Add a generation of units (see pipeline.units), and number them; None if there are none."""
    number, first_unit = len(before), sum(generation.units for generation in before)
    units = clips = inputs = redone = 0
    path = f"{FOLDER}/{number:05d}.parquet"
    with streamed_file(run.place / path) as sink:
        writer = None
        for table in tables:
            numbers = pa.array(np.arange(table.num_rows) + first_unit + units, pa.int64())
            table = table.add_column(0, "unit", numbers)
            if writer is None:
                writer = pq.ParquetWriter(sink, table.schema, compression="zstd")
            writer.write_table(table.cast(writer.schema), row_group_size=UNITS_AT_ONCE)
            items = items_of(table)
            again = items["redoes_unit"].is_valid()
            new = items.filter(pc.invert(again))
            units += table.num_rows
            clips += pc.sum(table["clips"]).as_py()
            inputs += inputs_of(new)
            redone += pc.sum(again).as_py()
        if writer is not None:
            writer.close()
    if not units:
        (run.place / path).delete()
        return None
    made = Generation(number, first_unit, units, clips, inputs, redone, settings)
    write_atomic(run.place / f"{made.name}.json", json.dumps(asdict(made)).encode())
    return made


def read(place: Location) -> list[Generation]:
    """The complete generations of a run's folder, in order."""
    records = [info for info in (place / FOLDER).files() if info.base_name.endswith(".json")]
    return [Generation(**json.loads(Location(place.filesystem, info.path).read_bytes())) for info in records]


def units(
    place: Location, generation: Generation, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Its units, some at a time."""
    with place.filesystem.open_input_file((place / f"{generation.name}.parquet").path) as file:
        for batch in pq.ParquetFile(file).iter_batches(UNITS_AT_ONCE, columns=columns):
            yield pa.Table.from_batches([batch])


def items_schema(place: Location, generation: Generation) -> pa.StructType:
    """What the plan says of an item."""
    with place.filesystem.open_input_file((place / f"{generation.name}.parquet").path) as file:
        return pq.read_schema(file).field("items").type.value_type


def write_pending(run: Run, generations: Iterable[Generation], committed: Iterable[int]) -> tuple[int, int]:
    """Write the units that are not committed, for Ray to read: (how many, items of the largest of them)."""
    done = np.sort(np.fromiter(committed, np.int64))
    pending = most_items = 0
    with streamed_file(run.place / PENDING) as sink:
        writer = None
        for generation in generations:
            for table in units(run.place, generation):
                table = table.filter(pa.array(~np.isin(table["unit"].to_numpy(), done, assume_unique=True)))
                if writer is None:
                    writer = pq.ParquetWriter(sink, table.schema, compression="zstd")
                if table.num_rows:
                    writer.write_table(table.cast(writer.schema), row_group_size=UNITS_AT_ONCE)
                    pending += table.num_rows
                    most_items = max(most_items, pc.max(pc.list_value_length(table["items"])).as_py())
        if writer is not None:
            writer.close()
    return pending, most_items


def remove_pending(run: Run) -> None:
    if (run.place / PENDING).exists():
        (run.place / PENDING).delete()


@dataclass(frozen=True)
class Void:
    """What later units have taken the place of: single items, and units all of whose items they have."""

    units: frozenset[int] = frozenset()
    items: frozenset[Item] = frozenset()

    def live(self, failures: pa.Table) -> pa.Table:
        """The rows of a table of failures that still hold."""
        rows = zip(failures["unit"].to_pylist(), failures["item"].to_pylist(), strict=True)
        return failures.filter(
            pa.array([u not in self.units and (u, i) not in self.items for u, i in rows], pa.bool_())
        )


def void(place: Location, generations: Sequence[Generation]) -> Void:
    """What units have taken the place of, or will when they are committed."""
    redone: set[Item] = set()
    for generation in generations:
        for table in units(place, generation, ["items"]) if generation.redone else ():
            items = items_of(table)
            pairs = zip(items["redoes_unit"].to_pylist(), items["redoes_item"].to_pylist(), strict=True)
            redone.update(pair for pair in pairs if pair[0] is not None)
    if not redone:
        return Void()
    touched = pa.array(sorted({unit for unit, _ in redone}), pa.int64())
    whole = set()
    for generation in generations:
        for table in units(place, generation, ["unit", "items"]):
            table = table.filter(pc.is_in(table["unit"], touched))
            lengths = pc.list_value_length(table["items"]).to_pylist()
            for unit, length in zip(table["unit"].to_pylist(), lengths, strict=True):
                if all((unit, item) in redone for item in range(length)):
                    whole.add(unit)
    return Void(frozenset(whole), frozenset(redone))


def inputs_of(items: pa.Table) -> int:
    """How many inputs they are: files by their first parts, or rows of shards."""
    if "first_row" in items.column_names:
        return pc.sum(pc.subtract(items["stop_row"], items["first_row"])).as_py() or 0
    return pc.sum(pc.equal(items["first_clip"], 0)).as_py() or 0


def items_of(table: pa.Table) -> pa.Table:
    """The items of some units, one after the other."""
    flat = pa.concat_arrays([chunk.flatten() for chunk in table["items"].chunks])
    return pa.table(dict(zip(flat.type.names, flat.flatten(), strict=True)))
