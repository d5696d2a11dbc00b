"""How fast a job's model is on this machine, and what its worker needs: measured on batches of noise."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.apart import peak_memory_bytes
from jobs.embed import Embed, Encoder
from pipeline.commits import Run
from pipeline.corpus import Media
from pipeline.plan import Plan
from pipeline.sampling import Sampling
from pipeline.shards import shard_schema

ENOUGH_SECONDS = 5.0  # of timing


@dataclass(frozen=True)
class Pace:
    """Of a model's worker.

    device: "cpu" or "cuda". start_seconds: until it could take its first view. seconds, cpu_seconds: of one
    view of each medium, `batch_views` at a time.
    """

    device: str
    dim: int
    start_seconds: float
    batch_views: dict[Media, int]
    seconds: dict[Media, float]
    cpu_seconds: dict[Media, float]
    peak_memory_bytes: int


def pace(encoder: Encoder, threads: int, views: Mapping[Media, int], seconds: float, *, on_gpu: bool) -> Pace:
    """Time a worker's own stage on batches of so many views, or on single ones where that takes too long.

    Args:
        on_gpu: whether it may use a GPU; this process has no other chance to find one.
        seconds: after which no batch is begun; one view of each medium is timed in any case.
    """
    if not on_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as Ray does where a worker asked for none
    begun = time.monotonic()
    stage = Embed(Run("", ""), encoder, threads, "")
    start_seconds = time.monotonic() - begun
    found: dict[Media, _Timed] = {}
    dim = 0
    for media, most in views.items():
        until = time.monotonic() + seconds / len(views)
        one = noise(stage.plan(media), encoder.sampling, 1)
        dim = stage.embed(one, media).shape[1]  # what is set up on first use is not timed
        found[media] = single = _timed(stage, one, media, 0.0)
        if most > 1 and time.monotonic() + single.seconds * most < until:
            found[media] = _timed(stage, noise(stage.plan(media), encoder.sampling, most), media, until)
    return Pace(
        stage.device,
        dim,
        start_seconds,
        {media: one.views for media, one in found.items()},
        {media: one.seconds for media, one in found.items()},
        {media: one.cpu_seconds for media, one in found.items()},
        peak_memory_bytes(),
    )


@dataclass(frozen=True)
class _Timed:
    """Of one view, among so many in a batch."""

    views: int
    seconds: float
    cpu_seconds: float


def _timed(stage: Embed, batch: pa.RecordBatch, media: Media, until: float) -> _Timed:
    """A batch once, and again as long as there is time and need: the fastest, being the least disturbed."""
    found: list[tuple[float, float]] = []
    while not found or (sum(wall for wall, _ in found) < ENOUGH_SECONDS and time.monotonic() < until):
        begun, cpu_begun = time.perf_counter(), time.process_time()
        stage.embed(batch, media)
        found.append((time.perf_counter() - begun, time.process_time() - cpu_begun))
    wall, cpu = min(found)
    return _Timed(batch.num_rows, wall / batch.num_rows, cpu / batch.num_rows)


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
