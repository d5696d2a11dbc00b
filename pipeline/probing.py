"""How long many inputs are by their headers, read on all nodes; a deadly one does no harm (Ray Data)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from pipeline.corpus import open_input
from pipeline.errors import MediaError, SpecError
from pipeline.limits import Limits
from pipeline.media import probe

# For reading a header; what takes longer is left to its unit, which counts how often it is tried.
PROBE_SECONDS = 60.0
T = TypeVar("T")
R = TypeVar("R")


def probe_durations(root: str, inputs: pa.Table, limits: Limits) -> list[float | None]:
    """Seconds of each input by its header, None where it cannot be read: read on all nodes, in order."""
    rows = pa.table({"row": pa.array(range(inputs.num_rows)), "uri": inputs["uri"]})
    probed = ray.data.from_arrow(rows).repartition(target_num_rows_per_block=64)
    probed = probed.map_batches(_probe_batch, fn_args=(root, limits), batch_size=64, batch_format="pyarrow")
    seconds: list[float | None] = [None] * inputs.num_rows
    for batch in probed.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row, value in zip(batch["row"].to_pylist(), batch["seconds"].to_pylist(), strict=True):
            seconds[row] = value
    return seconds


def _probe_batch(rows: pa.Table, root: str, limits: Limits) -> pa.Table:
    seconds = isolated(partial(probe_seconds, root, limits=limits), rows["uri"].to_pylist(), PROBE_SECONDS)
    return pa.table({"row": rows["row"], "seconds": pa.array(seconds, pa.float64())})


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
