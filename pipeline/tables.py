"""Tables of inputs, and what they may say of each: CSV, Parquet, JSON lines or a plain list of uris."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from pipeline.errors import SpecError
from pipeline.storage import locate

IMAGE_SUFFIXES = frozenset(".bmp .jpeg .jpg .png .tif .tiff .webp".split())
TABLE_SUFFIXES = frozenset(".csv .jsonl .ndjson .parquet .tsv .txt".split())

# Inputs that are held at a time, and how much of a text file is looked at to find out its columns' types.
CHUNK_ROWS = 1 << 16
BLOCK_BYTES = 64 << 20

# What an input table may say of each of its rows; its other columns are carried along.
KNOWN = {
    "uri": pa.string(),
    "start_seconds": pa.float64(),
    "end_seconds": pa.float64(),
    "labels": pa.list_(pa.string()),
    "caption": pa.string(),
    "split": pa.string(),
    "group": pa.string(),
}
# Names that the outputs give a meaning of their own.
RESERVED = frozenset(
    "clip_id source_version frame_pts time_base padded_frames padded_with damaged_frames crop view_index"
    " embedding first_clip stop_clip first_row stop_row media version redoes_unit redoes_item".split()
)


def read_table(path: str) -> Iterator[pa.Table]:
    """A table in chunks, as its file has it; `uri` and `labels` by their names. SpecError if it is no use.

    The types of CSV and JSON columns are those of the first BLOCK_BYTES.
    """
    place = locate(path, "input.path")
    suffix = suffix_of(path)
    first_row = 1
    try:
        with place.filesystem.open_input_file(place.path) as file:
            for table in _chunks(file, suffix):
                for start in range(0, table.num_rows, CHUNK_ROWS) or (0,):
                    chunk = table.slice(start, CHUNK_ROWS)
                    yield _named(chunk, path, first_row)
                    first_row += chunk.num_rows
    except (pa.ArrowException, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        hint = ", whose types were read off its beginning; write it as .parquet" if first_row > 1 else ""
        raise SpecError("input.path", path, f"cannot be read as {suffix}: {text}{hint}") from None


def _chunks(file: pa.NativeFile, suffix: str) -> Iterator[pa.Table]:
    if suffix == ".parquet":
        reader = pq.ParquetFile(file)
        yield reader.schema_arrow.empty_table()
        batches: Iterable[pa.RecordBatch] = reader.iter_batches(CHUNK_ROWS)
    elif suffix in {".jsonl", ".ndjson"}:
        batches = pajson.open_json(file, pajson.ReadOptions(block_size=BLOCK_BYTES))
    elif suffix == ".txt":
        lines = (line.strip() for line in io.TextIOWrapper(file, encoding="utf-8-sig"))
        uris = (line for line in lines if line and not line.startswith("#"))
        batches = (
            pa.record_batch({"uri": pa.array(some, pa.string())})
            for some in iter(lambda: list(islice(uris, CHUNK_ROWS)), [])
        )
    else:
        batches = pacsv.open_csv(
            file,
            read_options=pacsv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(
                delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True
            ),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in (*KNOWN, "path", "label")}
                | {"start_seconds": pa.float64(), "end_seconds": pa.float64()},
                null_values=[""],  # "NA" and "null" may well be names
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    for batch in batches:
        yield pa.Table.from_batches([batch])


def _named(table: pa.Table, path: str, first_row: int) -> pa.Table:
    """`path` may stand for `uri`, and one `label` for `labels`."""
    names = [name.strip() for name in table.column_names]
    columns = dict(zip(names, table.columns, strict=True))
    if len(columns) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise SpecError("input.path", path, f"has two columns named '{double}'; rename one")
    if "uri" not in columns and "path" in columns:
        columns["uri"] = columns.pop("path")
    if "uri" not in columns:
        raise SpecError("input.path", path, f"has no column 'uri' or 'path', only {', '.join(columns)}")
    if columns["uri"].null_count:
        row = columns["uri"].is_null().combine_chunks().index(True).as_py()
        raise SpecError("input.path", path, f"row {first_row + row} has no uri")
    if "labels" not in columns and "label" in columns:
        columns["labels"] = columns.pop("label")
    if "labels" in columns and pa.types.is_string(columns["labels"].type):
        # "a;b" is two labels: a comma or a space may well be part of one
        columns["labels"] = pc.split_pattern(columns["labels"], ";")
    clash = sorted(RESERVED & columns.keys())
    if clash:
        raise SpecError("input.path", path, f"column '{clash[0]}' is a name of the output's own; rename it")
    return pa.table(columns)


def complete(inputs: pa.Table, first_row: int = 1) -> pa.Table:
    """Every known column in its type and order, then `media` and `version`, then the caller's own.

    first_row: what the first one is called in messages.
    """
    columns = {}
    for name, kind in KNOWN.items():
        if name in inputs.column_names:
            try:
                columns[name] = inputs[name].cast(kind)
            except pa.ArrowException as error:
                text = " ".join(str(error).split())
                raise SpecError("input.path", name, f"this column is not {kind}: {text}") from None
        else:
            columns[name] = pa.nulls(inputs.num_rows, kind)
    suffixes = (suffix_of(uri) for uri in columns["uri"].to_pylist())
    columns["media"] = pa.array(["image" if s in IMAGE_SUFFIXES else "video" for s in suffixes])
    columns["version"] = (
        inputs["version"] if "version" in inputs.column_names else pa.nulls(inputs.num_rows, pa.string())
    )
    for name in inputs.column_names:
        if name not in KNOWN and name != "version":
            columns[name] = inputs[name]
            _carriable(name, inputs[name])
    for name in ("start_seconds", "end_seconds"):
        columns[name] = pc.if_else(pc.is_nan(columns[name]), None, columns[name])
    _check_spans(columns["uri"], columns["start_seconds"], columns["end_seconds"], first_row)
    return pa.table(columns).combine_chunks()


def _carriable(name: str, column: pa.ChunkedArray) -> None:
    """Refuse a column that outputs could not hold, before anything is computed."""
    try:
        pq.write_table(pa.table({name: column[:1]}), pa.BufferOutputStream())
        pa.array(column[:1].to_pylist(), column.type)
        column[:1].take(pa.array(range(min(1, len(column))), pa.int64()))
    except (pa.ArrowException, NotImplementedError) as error:
        text = " ".join(str(error).split())
        raise SpecError(
            "input.path", name, f"a column of {column.type} cannot be carried along: {text}"
        ) from None


def _check_spans(
    uris: pa.ChunkedArray, starts: pa.ChunkedArray, ends: pa.ChunkedArray, first_row: int
) -> None:
    filled = pc.fill_null(starts, 0.0)
    wrong = pc.or_(pc.less(filled, 0.0), pc.invert(pc.is_finite(filled)))
    wrong = pc.or_(wrong, pc.fill_null(pc.less_equal(ends, filled), False))
    wrong = pc.or_(wrong, pc.invert(pc.is_finite(pc.fill_null(ends, 0.0))))
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        span = f"{starts[row].as_py()} to {ends[row].as_py()} s"
        raise SpecError(
            "input.path",
            uris[row].as_py(),
            f"row {first_row + row} spans {span}; it must begin at 0 or later and end after that",
        )


def suffix_of(uri: str) -> str:
    return PurePosixPath(uri.partition("?")[0] if "://" in uri else uri).suffix.lower()


def of_split(table: pa.Table, split: str | tuple[str, ...] | None, field: str) -> pa.Table:
    """The rows of a split, or of several; None: all of them. SpecError if no row is of one of them."""
    if split is None:
        return table
    splits, asked = table["split"], (split,) if isinstance(split, str) else split
    there = pc.unique(splits).to_pylist()
    if missing := [one for one in asked if one not in there]:
        names = ", ".join(map(repr, there))
        raise SpecError(f"{field}.split", missing[0], f"no clip has it; there are {names}")
    return table.filter(pc.is_in(splits, pa.array(asked, pa.string()))).combine_chunks()
