"""Pools of actors that units stream through, on Ray Data: how much may wait, and when to give up (C9)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.data
from pyarrow import fs as pafs
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.commits import Receipt
from pipeline.storage import Location

GO_ON = "what is committed stays, and the same command goes on from there"


@dataclass(frozen=True)
class Pool:
    """A stage: a class to construct on each actor, and what an actor holds.

    output_bytes: what a unit that it is done with takes up, at most, until the next pool has it.
    """

    stage: type
    arguments: tuple[Any, ...]
    actors: int
    cpus: float
    gpus: float = 0.0
    output_bytes: int = 0


@dataclass(frozen=True)
class Patience:
    """How long nothing may happen before a run fails, because then it hangs.

    worker_seconds: a pool without a single worker, at the start or after it lost its nodes.
    unit_seconds: no unit leaves any pool, though they have workers.
    """

    worker_seconds: float
    unit_seconds: float


class StalledError(RuntimeError):
    """Nothing moves, and nothing will: lost nodes that nobody replaced, or a pool that hangs."""


def waiting_bytes(pools: Sequence[Pool]) -> int:
    """What may lie in the object store between these pools, all nodes together.

    Two units for every actor: one that it is making or taking in, and one that waits, so that nobody is idle.
    Ray sets a half of the limit aside for each operator's own use, hence twice that.
    """
    actors = sum(pool.actors for pool in pools)
    return 2 * 2 * actors * max(pool.output_bytes for pool in pools)


def run_pools(
    plan: Location, pools: Sequence[Pool], object_store_bytes: int | None, patience: Patience
) -> Iterator[Receipt]:
    """Send every unit of a frozen plan through the pools; yield its receipt when it is committed.

    Args:
        object_store_bytes: what may wait between the pools; None is `waiting_bytes`.

    Raises:
        StalledError: see `Patience`.
    """
    with ray.data.DataContext.current(_context(pools, object_store_bytes, patience)):
        units = _units(plan)
        for pool in pools:
            units = units.map_batches(
                pool.stage,
                fn_constructor_args=pool.arguments,
                compute=ray.data.ActorPoolStrategy(size=pool.actors),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=pool.cpus,
                num_gpus=pool.gpus or None,
            )
    try:
        for batch in units.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for text in batch["receipt"].to_pylist():
                yield Receipt.from_json(text)
    except _NoWorkersError as error:
        raise StalledError(str(error)) from None
    except ExecutionTimeoutError as error:
        problem = f"no unit has left any stage for {patience.unit_seconds:.0f} s; {GO_ON}"
        raise StalledError(f"{problem} (limits.timeout_seconds decides how long one may take)") from error


def _units(plan: Location) -> ray.data.Dataset:
    """A row of the plan a block."""
    # From its own folder, because Ray takes some characters of a path, such as "?", for a query.
    folder, _, name = plan.path.rpartition("/")
    units = ray.data.read_parquet(name, filesystem=pafs.SubTreeFileSystem(folder, plan.filesystem))
    return units.repartition(target_num_rows_per_block=1)


def _context(
    pools: Sequence[Pool], object_store_bytes: int | None, patience: Patience
) -> ray.data.DataContext:
    """Settings of this run alone: those of the process, which may be a notebook, stay as they are."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0
    # With Ray's own ratio a producer that waits for room can hang when a node is lost; the limit below
    # and one unit a task bound memory instead.
    context.downstream_capacity_backpressure_ratio = None
    limit = object_store_bytes or waiting_bytes(pools)
    if limit:
        context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
            object_store_memory=limit
        )
    context.execution_no_progress_timeout_s = patience.unit_seconds
    context.custom_execution_callback_classes = [
        *context.custom_execution_callback_classes,
        partial(_Watch, patience.worker_seconds),
    ]
    return context


class _NoWorkersError(ExecutionTimeoutError):
    """One of Ray's own, so that it passes without a trace of Ray's insides."""


class _Watch(ExecutionCallback):
    """Ends a run that has a pool without workers: Ray would wait for them without end."""

    def __init__(self, worker_seconds: float):
        self._worker_seconds = worker_seconds
        self._since: dict[str, float] = {}

    def on_execution_step(self, executor: Any) -> None:
        for operator in executor._topology:
            workers, name = operator.get_actor_info(), operator.name
            if workers.running or not workers.pending + workers.restarting or operator.has_completed():
                self._since.pop(name, None)
            elif time.monotonic() - self._since.setdefault(name, time.monotonic()) > self._worker_seconds:
                raise _NoWorkersError(self._problem(name, workers.pending + workers.restarting))

    def _problem(self, name: str, wanted: int) -> str:
        there = ray.cluster_resources()
        has = " and ".join(f"{there.get(what, 0):g} {what}s" for what in ("CPU", "GPU"))
        return (
            f"{name} has had no worker for {self._worker_seconds:.0f} s (ray.wait_seconds): no room for "
            f"any of its {wanted} on this cluster, which has {has}; add a node, or ask for less; {GO_ON}"
        )
