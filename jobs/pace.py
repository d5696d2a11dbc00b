"""How fast a job's model is on this machine, and what its worker needs: measured on batches of noise."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.embed import Embed, Encoder
from pipeline.commits import Run
from pipeline.corpus import Media
from pipeline.plan import Plan
from pipeline.sampling import Sampling
from pipeline.shards import shard_schema
from pipeline.stages import peak_memory_bytes

ENOUGH_SECONDS = 5.0  # of timing
HASTE = 1.5  # a batch twice as large takes less than twice as long


@dataclass(frozen=True)
class Pace:
    """Of a model's worker.

    device: "cpu" or "cuda". start_seconds: to make the model. seconds, cpu_seconds: of one view of each
    medium, `batch_views` at a time.
    """

    device: str
    dim: int
    start_seconds: float
    batch_views: dict[Media, int]
    seconds: dict[Media, float]
    cpu_seconds: dict[Media, float]
    peak_memory_bytes: int


def pace(encoder: Encoder, threads: int, views: Mapping[Media, int], seconds: float, *, on_gpu: bool) -> Pace:
    """Time a worker's own stage on batches of so many views, or on smaller ones where these take too long.

    Args:
        on_gpu: whether it may use a GPU; this process has no other chance to find one.
        seconds: after which no batch is begun; one view of each medium is timed in any case.
    """
    if not on_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as Ray does where a worker asked for none
    # Before the clock runs: how long it takes depends on what a disk has in its cache, and on no model.
    importlib.import_module("torch")
    begun = time.monotonic()
    stage = Embed(Run("", ""), encoder, threads, "")
    start_seconds = time.monotonic() - begun
    found: dict[Media, _Timed] = {}
    for media, most in views.items():
        until = time.monotonic() + seconds / len(views)
        found[media] = _grown(stage, encoder.sampling, media, most, until)
    one = next(iter(views))
    return Pace(
        stage.device,
        stage.embed(noise(stage.plan(one), encoder.sampling, 1), one).shape[1],
        start_seconds,
        {media: one.views for media, one in found.items()},
        {media: one.seconds for media, one in found.items()},
        {media: one.cpu_seconds for media, one in found.items()},
        peak_memory_bytes(),
    )


@dataclass(frozen=True, order=True)
class _Timed:
    """Of one view, among so many in a batch."""

    seconds: float
    cpu_seconds: float
    views: int


def _grown(stage: Embed, sampling: Sampling, media: Media, most: int, until: float) -> _Timed:
    """Batches twice as large each time, until they are as large as they should be or there is no time.

    In the first one all is set up; of the largest ones the fastest counts, being the least disturbed.
    """
    views = 1
    while True:
        batch = noise(stage.plan(media), sampling, views)
        found = _timed(stage, batch, media)
        if views == most:
            break
        views = min(2 * views, most)
        if found.seconds * views > HASTE * (until - time.monotonic()):
            return found
    again = [found]
    while sum(one.seconds for one in again) * most < ENOUGH_SECONDS and time.monotonic() < until:
        again.append(_timed(stage, batch, media))
    return min(again)


def _timed(stage: Embed, batch: pa.RecordBatch, media: Media) -> _Timed:
    begun, cpu_begun = time.perf_counter(), time.process_time()
    stage.embed(batch, media)
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
    return _Timed(wall / batch.num_rows, cpu / batch.num_rows, batch.num_rows)


def noise(plan: Plan, sampling: Sampling, views: int) -> pa.RecordBatch:
    """Views of random pixels, as a decoder sends them."""
    generator = np.random.default_rng(0)
    tubes = {one.name: generator.integers(0, 256, (views, *one.shape), np.uint8) for one in plan.tubes}

    def columns(schema: pa.Schema) -> Iterator[pa.Array]:
        for field in schema:
            tube = tubes.get(field.name)
            nothing = pa.nulls(views, field.type)
            yield nothing if tube is None else pa.FixedShapeTensorArray.from_numpy_ndarray(tube)

    schema = shard_schema(plan, sampling)
    return pa.RecordBatch.from_arrays(list(columns(schema)), schema=schema)


def embeddings_bytes(meta: pa.Table, dim: int) -> tuple[float, int]:
    """(of a row on an average, of a file without any) of embeddings with these columns."""
    generator = np.random.default_rng(0)
    values = pa.array(generator.standard_normal(meta.num_rows * dim, np.float32))
    whole = meta.append_column("embedding", pa.FixedSizeListArray.from_arrays(values, dim))
    empty = _parquet_bytes(whole.slice(0, 0))
    return (_parquet_bytes(whole) - empty) / meta.num_rows, empty


def _parquet_bytes(table: pa.Table) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().size
