"""How long many inputs are by their headers, read on all nodes; a deadly one does no harm (Ray Data)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from pipeline.corpus import open_input
from pipeline.errors import MediaError, SpecError
from pipeline.limits import Limits
from pipeline.media import probe
from pipeline.storage import version_of

# For reading a header; what takes longer is left to its unit, which counts how often it is tried.
PROBE_SECONDS = 60.0
T = TypeVar("T")
R = TypeVar("R")


def probe_durations(root: str, inputs: pa.Table, limits: Limits) -> list[float | None]:
    """Seconds of each input by its header, None where it cannot be read: read on all nodes, in order."""
    return _of_each(inputs, partial(_seconds_of, root, limits), pa.float64())


def hash_contents(root: str, inputs: pa.Table) -> list[str | None]:
    """The version of each input by its content, None where it cannot be read: on all nodes, in order."""
    return _of_each(inputs, partial(_hashes_of, root), pa.string())


def _of_each(inputs: pa.Table, function: Callable[[list[str]], list[Any]], kind: pa.DataType) -> list[Any]:
    """`function` of all uris, some at a time, wherever there is a place for it."""

    def batch(rows: pa.Table) -> pa.Table:
        return pa.table({"row": rows["row"], "found": pa.array(function(rows["uri"].to_pylist()), kind)})

    rows = pa.table({"row": pa.array(range(inputs.num_rows)), "uri": inputs["uri"]})
    asked = ray.data.from_arrow(rows).repartition(target_num_rows_per_block=64)
    asked = asked.map_batches(batch, batch_size=64, batch_format="pyarrow")
    found: list[Any] = [None] * inputs.num_rows
    for answer in asked.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row, value in zip(answer["row"].to_pylist(), answer["found"].to_pylist(), strict=True):
            found[row] = value
    return found


def _seconds_of(root: str, limits: Limits, uris: list[str]) -> list[float | None]:
    return isolated(partial(probe_seconds, root, limits=limits), uris, PROBE_SECONDS)


def _hashes_of(root: str, uris: list[str]) -> list[str | None]:
    return [content_of(root, uri) for uri in uris]


def content_of(root: str, uri: str) -> str | None:
    try:
        return version_of(open_input(root, uri), "content")
    except (SpecError, OSError, pa.ArrowException):
        return None  # and why is found out when it is decoded


def isolated(function: Callable[[T], R], items: list[T], timeout_seconds: float) -> list[R | None]:
    """`function` of each item, in a worker process of its own; None where it dies or hangs.

    All share one process as long as nothing happens, as it hardly ever does.
    """
    work = ray.remote(num_cpus=0, max_retries=0)(lambda: [function(item) for item in items])
    result = work.remote()
    try:
        return ray.get(result, timeout=timeout_seconds + len(items))
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.GetTimeoutError):
        ray.cancel(result, force=True)
    if len(items) == 1:
        return [None]
    return [one for item in items for one in isolated(function, [item], timeout_seconds)]


def probe_seconds(root: str, uri: str, limits: Limits) -> float | None:
    try:
        return probe(open_input(root, uri), limits).duration_seconds
    except (MediaError, SpecError):
        return None
