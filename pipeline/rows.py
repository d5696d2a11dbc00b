"""Views to rows of a shard: their tubes are cut straight into a record batch."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.cut import cut
from pipeline.plan import Plan
from pipeline.sampling import Sampling
from pipeline.shards import meta_fields
from pipeline.units import PLANNED
from pipeline.video import Pixels

# Of a record batch. Uncompressed, its size hardly matters to a reader; to a writer it is the memory.
BATCH_ROWS = 64


class Rows:
    """Collects views and gives them out as record batches; a tube is cut straight into its batch."""

    def __init__(self, schema: pa.Schema, plan: Plan, batch_rows: int = BATCH_ROWS):
        self._schema, self._plan, self._batch_rows = schema, plan, batch_rows
        self._names = [field.name for field in meta_fields(schema)]
        self.count = 0
        self._start()

    def _start(self) -> None:
        self._meta: list[dict[str, Any]] = []
        self._tubes = {t.name: np.empty((self._batch_rows, *t.shape), np.uint8) for t in self._plan.tubes}

    def add(
        self, item: dict[str, Any], source_version: str, pixels: Pixels, sampling: Sampling
    ) -> pa.RecordBatch | None:
        """Add one view of an input; gives a batch whenever one is full."""
        row = len(self._meta)
        cut(pixels.frames, self._plan, {name: tube[row] for name, tube in self._tubes.items()})
        self._meta.append(_meta(item, source_version, pixels, sampling))
        self.count += 1
        return self.flush() if len(self._meta) == self._batch_rows else None

    def flush(self) -> pa.RecordBatch | None:
        """What has been added since the last batch, if anything."""
        if not self._meta:
            return None
        rows = len(self._meta)
        arrays: list[pa.Array] = []
        for field in self._schema:
            if field.name in self._tubes:
                arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(self._tubes[field.name][:rows]))
            else:
                arrays.append(pa.array([meta.get(field.name) for meta in self._meta], field.type))
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._start()
        return batch


class Covered:
    """How many seconds of video some views show, each moment once.

    Views of a clip follow each other, and clips of an input do in the order of time.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._whose, self._until = "", 0.0

    def add(self, batch: pa.RecordBatch) -> None:
        columns = (batch[name].to_pylist() for name in ("clip_id", "start_seconds", "end_seconds"))
        for clip_id, start, end in zip(*columns, strict=True):
            whose = clip_id.rpartition("#")[0]  # an input, or a span of it
            since = max(start, self._until) if whose == self._whose else start
            self.seconds += max(0.0, end - since)
            self._whose, self._until = whose, max(since, end)


def input_id(item: Mapping[str, Any]) -> str:
    """What an input is called, or the annotated part of one."""
    if item["start_seconds"] is None and item["end_seconds"] is None:
        return str(item["uri"])
    start, end = ("" if s is None else s for s in (item["start_seconds"], item["end_seconds"]))
    return f"{item['uri']}@{start}-{end}"


def _meta(item: dict[str, Any], source_version: str, pixels: Pixels, sampling: Sampling) -> dict[str, Any]:
    view = pixels.clip.index * sampling.views + pixels.crop_index
    return {
        **{k: v for k, v in item.items() if k not in PLANNED},
        # Unique in a corpus and the same in every run: who, which frames, which view of them.
        "clip_id": f"{input_id(item)}#{pixels.pts.min()}-{pixels.pts.max()}/{view}",
        "source_version": source_version,
        "start_seconds": pixels.start_seconds,
        "end_seconds": pixels.end_seconds,
        "frame_pts": pixels.pts,
        "time_base": str(Fraction(pixels.time_base)),
        "padded_frames": pixels.clip.padded_frames,
        "padded_with": sampling.end if pixels.clip.padded_frames else None,
        "damaged_frames": pixels.damaged_frames,
        "crop": list(pixels.crop),
        "view_index": view,
    }
