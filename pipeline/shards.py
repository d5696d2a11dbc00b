"""Shards: uncompressed Arrow IPC files of tubes, one row per view (contract C5).

Any pyarrow opens one. `ShardReader` maps it and hands out the tubes of any plan that it contains, uncopied.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from pipeline.errors import Failure, SpecError
from pipeline.plan import Plan
from pipeline.sampling import Sampling
from pipeline.storage import Location, locate

FORMAT_VERSION = 2

META = pa.schema(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("source_version", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("frame_pts", pa.list_(pa.int64())),
        ("time_base", pa.string()),
        ("padded_frames", pa.int32()),  # past the end of the video, filled as `padded_with` says
        ("padded_with", pa.string()),  # "repeat", "loop", or null where there are none
        ("damaged_frames", pa.int32()),  # kept in spite of it (sampling.corrupt: keep)
        ("crop", pa.list_(pa.int32())),  # top, left, height, width in pixels of the stored picture
        ("view_index", pa.int32()),
        ("labels", pa.list_(pa.string())),
        ("caption", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
    ]
)
FAILURES = pa.schema(
    [
        ("uri", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("position_seconds", pa.float64()),
        ("clip", pa.int64()),
        ("attempts", pa.int32()),
        ("item", pa.int64()),
        ("rows", pa.int64()),
        ("worker", pa.string()),
        ("unit", pa.int64()),
    ]
)
CARRIED = ("labels", "caption", "split", "group")


def shard_schema(plan: Plan, sampling: Sampling, extra: Sequence[pa.Field] = ()) -> pa.Schema:
    """The schema of a shard set: META, the caller's own columns, one tensor column per tube."""
    taken = {*META.names, *(field.name for field in extra)}
    for tube in plan.tubes:
        if tube.name in taken:
            raise SpecError("input.path", tube.name, "a column of the input has a tube's name; rename it")
    tubes = [pa.field(t.name, pa.fixed_shape_tensor(pa.uint8(), t.shape), nullable=False) for t in plan.tubes]
    metadata = {
        "tubelet.format": str(FORMAT_VERSION),
        "tubelet.plan": plan.model_dump_json(),
        "tubelet.digest": plan.digest,
        "tubelet.sampling": sampling.model_dump_json(),
    }
    return pa.schema([*META, *extra, *tubes], metadata=metadata)


def meta_fields(schema: pa.Schema) -> list[pa.Field]:
    """The columns of a shard that are not pixels."""
    return [field for field in schema if not isinstance(field.type, pa.FixedShapeTensorType)]


def videos_of(clip_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """What each clip is of: the part of its id that names a video, or an annotated part of one."""
    return pc.replace_substring_regex(clip_ids, "#[0-9-]+/[0-9]+$", "")


def failure_table(failures: Sequence[Failure], unit: int) -> pa.Table:
    rows = [{**asdict(failure), "unit": unit} for failure in failures]
    return pa.Table.from_pylist(rows, schema=FAILURES)


def tube_values(batch: pa.RecordBatch, name: str) -> pa.UInt8Array:
    """A tube column's pixels as one flat Arrow array, uncopied."""
    values = batch.column(name).storage.flatten()
    assert isinstance(values, pa.UInt8Array)
    return values


def tube_arrays(batch: pa.RecordBatch, plan: Plan) -> dict[str, np.ndarray]:
    """The tubes of a batch that was cut by `plan`: {name: read-only uint8 (rows, *tube.shape)}, uncopied."""
    return {
        t.name: tube_values(batch, t.name).to_numpy(zero_copy_only=True).reshape(-1, *t.shape)
        for t in plan.tubes
    }


def schema_plan(schema: pa.Schema, name: str = "shard") -> tuple[Plan, Sampling]:
    """The plan and the sampling that a shard was cut by."""
    metadata = schema.metadata or {}
    if b"tubelet.plan" not in metadata:
        raise SpecError("input.shards", name, "not a shard: its schema holds no plan")
    version = metadata.get(b"tubelet.format", b"?").decode()
    if version != str(FORMAT_VERSION):
        raise SpecError("input.shards", name, f"is of format {version}; this version reads {FORMAT_VERSION}")
    try:
        plan = Plan.model_validate_json(metadata[b"tubelet.plan"])
        sampling = Sampling.model_validate_json(metadata[b"tubelet.sampling"])
    except (ValidationError, KeyError) as error:
        raise SpecError("input.shards", name, f"its plan cannot be read: {error}") from None
    if plan.digest != metadata[b"tubelet.digest"].decode():
        raise SpecError("input.shards", name, "its plan does not match its digest; write it again")
    return plan, sampling


class ShardReader:
    """One shard, memory-mapped where it is local."""

    def __init__(self, location: Location | str):
        self.location = locate(location) if isinstance(location, str) else location
        path, filesystem = self.location.path, self.location.filesystem
        try:
            source = pa.memory_map(path) if self.location.is_local else filesystem.open_input_file(path)
            self._file = pa.ipc.open_file(source)
        except (OSError, pa.ArrowException) as error:
            raise SpecError("input.shards", path, f"cannot be opened as an Arrow file: {error}") from None
        self.schema: pa.Schema = self._file.schema
        self.plan, self.sampling = schema_plan(self.schema, path)
        count = self._file.num_record_batches
        # Every batch but the last has as many rows as the first, so two of them tell all.
        self.batch_rows = self._file.get_batch(0).num_rows if count else 1
        self._rows = (count - 1) * self.batch_rows + self._file.get_batch(count - 1).num_rows if count else 0

    def __len__(self) -> int:
        return self._rows

    def batch(self, number: int) -> pa.RecordBatch:
        """The record batch that holds rows [number * batch_rows, ...), uncopied."""
        return self._file.get_batch(number)

    def rows(self, start: int, stop: int) -> pa.RecordBatch:
        """Rows [start, stop): a view where they lie in one record batch, else a copy."""
        parts = []
        while start < stop:
            number, offset = divmod(start, self.batch_rows)
            size = min(stop - start, self.batch_rows - offset)
            parts.append(self._file.get_batch(number).slice(offset, size))
            start += size
        return parts[0] if len(parts) == 1 else pa.concat_batches(parts)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of all rows, uncopied; no pixel is touched unless one of them holds some."""
        batches = (self._file.get_batch(number) for number in range(self._file.num_record_batches))
        fields = [self.schema.field(name) for name in names]
        return pa.Table.from_batches((batch.select(names) for batch in batches), pa.schema(fields))

    def tubes(self, wanted: Plan, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """The tubes of another plan that this shard contains, for rows [start, stop).

        Returns:
            {tube name of `wanted`: read-only uint8 (rows, n_t, n_h, n_w, kT, kH, kW, 3)}, uncopied.

        Raises:
            SpecError: the shard does not hold them; both plans are shown.
        """
        require(self.plan, wanted, self.location.path)
        batch = self.rows(start, len(self) if stop is None else stop)
        return self.plan.take(tube_arrays(batch, self.plan), wanted)


def require(held: Plan, wanted: Plan, name: str, field: str = "input.shards") -> None:
    """Refuse shards that lack a tube of the plan that is wanted."""
    if not held.contains(wanted):
        raise SpecError(
            field,
            name,
            f"holds plan {held}, but the model wants {wanted}; cut shards for this model",
        )


@dataclass(frozen=True)
class ShardFile:
    """A shard that has not been opened; its rows, where a manifest tells them."""

    location: Location
    rows: int | None


class ShardSet:
    """The shards of one set in order of their names, as one list of rows, each opened when needed."""

    def __init__(self, files: Sequence[ShardFile]):
        self.files = list(files)
        first = self._open(0)
        self.schema, self.plan, self.sampling = first.schema, first.plan, first.sampling

    def __len__(self) -> int:
        return sum(self.rows_of(number) for number in range(len(self.files)))

    def rows_of(self, number: int) -> int:
        rows = self.files[number].rows
        return len(self._open(number)) if rows is None else rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        """One row: its metadata, and {tube name: uint8 array} under "tubes"."""
        left = row + len(self) if row < 0 else row
        for number in range(len(self.files) if left >= 0 else 0):
            if left >= self.rows_of(number):
                left -= self.rows_of(number)
                continue
            shard = self._open(number)
            if not shard.schema.equals(self.schema, check_metadata=True):
                raise SpecError(
                    "input.shards", shard.location.path, "differs in its schema from the first one"
                )
            batch = shard.rows(left, left + 1)
            names = [field.name for field in meta_fields(self.schema)]
            tubes = tube_arrays(batch, self.plan)
            return {**batch.select(names).to_pylist()[0], "tubes": {k: v[0] for k, v in tubes.items()}}
        raise IndexError(row)

    def _open(self, number: int) -> ShardReader:
        return ShardReader(self.files[number].location)


def open_dataset(folder: str) -> ShardSet:
    """Open a shard set: a folder of .arrow files, or a run's output folder with one set in it."""
    found = shard_files(locate(folder, "input.shards"))
    if len(found) > 1:
        which = f"open one of {', '.join(f'{folder}/shards/{name}' for name in found)}"
        raise SpecError("input.shards", folder, f"holds several sets; {which}")
    return ShardSet(next(iter(found.values())))


def shard_files(place: Location) -> dict[str, list[ShardFile]]:
    """The shards of a folder by set: of one set's own folder, or of a run's output folder.

    A run's manifest is followed, so that files of an interrupted run are not taken for its output.
    """
    manifest = place / "manifest.json"
    sets: dict[str, list[ShardFile]] = {}
    if manifest.exists():
        for file in json.loads(manifest.read_bytes())["files"]:
            if file["path"].endswith(".arrow"):
                found = ShardFile(place / file["path"], file["rows"])
                sets.setdefault(file["path"].split("/")[-2], []).append(found)
    else:
        names = [info.base_name for info in place.files() if info.base_name.endswith(".arrow")]
        if names:
            sets[place.path.rpartition("/")[2]] = [ShardFile(place / name, None) for name in names]
    if not sets:
        hint = " (has its run finished?)" if (place / "shards").exists() and not manifest.exists() else ""
        raise SpecError("input.shards", place.path, f"no shards in it{hint}")
    return {name: sorted(files, key=lambda f: f.location.path) for name, files in sorted(sets.items())}
