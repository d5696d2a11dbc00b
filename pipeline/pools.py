"""Pools of actors that units stream through, on Ray Data: how much may wait, and when to give up (C9)."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
import ray.data
import ray.exceptions
from pyarrow import fs as pafs
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.commits import Receipt
from pipeline.errors import SpecError, SpecListError, StorageError
from pipeline.storage import Location

# A line of a traceback that names what was raised; what Ray itself raised because of it comes last.
RAISED = re.compile(r"^(?!ray\.)(?:\w+\.)*(\w+): (.+)$", re.MULTILINE)
SPEC_ERRORS = {SpecError.__name__, SpecListError.__name__}
Stages = tuple[tuple[str, int], ...]  # the name of each pool, and how many actors it has
# Of the driver, which has one core: for a unit, and for a unit and each actor that it may be given to;
# `python -m benchmarks.scale` measures it. A driver that works more than half of the time falls behind.
UNIT_SECONDS, UNIT_ACTOR_SECONDS, DRIVER_SHARE = 0.013, 70e-6, 0.5
GO_ON = "what is committed stays, and the same command goes on from there"


@dataclass(frozen=True)
class Pool:
    """A stage: a class to construct on each actor, what an actor holds, and labels of the nodes for it.

    actors: how many; with `least` the most, and Ray has between these as many as there is work and room for.
    """

    stage: type
    arguments: tuple[Any, ...]
    actors: int
    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    least: int | None = None


@dataclass(frozen=True)
class Patience:
    """How long no unit may be finished before a run fails, because then it hangs.

    worker_seconds: while workers are missing, at the start or after their nodes were lost.
    unit_seconds: while all of them are there.
    """

    worker_seconds: float
    unit_seconds: float


@dataclass(frozen=True)
class PoolState:
    """How a pool stands: workers asked for, that run, that have a unit; units that wait for one, and done."""

    stage: str
    wanted: int
    workers: int
    at_work: int
    waiting: int
    done: int


class Standing:
    """The state of each pool of a run, in order, for whoever shows it; a thread of Ray's keeps it current."""

    def __init__(self) -> None:
        self.pools: tuple[PoolState, ...] = ()

    def __deepcopy__(self, memo: object) -> Standing:
        return self  # it travels in settings of Ray Data's, which are copied again and again


class StalledError(RuntimeError):
    """Nothing moves, and nothing will: lost nodes that nobody replaced, or a pool that hangs."""


class StageError(RuntimeError):
    """A stage raised something that is neither its input's fault nor the machine's."""


def run_pools(
    plan: Location,
    pools: Sequence[Pool],
    object_store_bytes: int | None,
    patience: Patience,
    standing: Standing | None = None,
) -> Iterator[Receipt]:
    """Send every unit of a frozen plan through the pools; yield its receipt when it is committed.

    Between a pool of n actors and the next one of m there are never more than 2 n + 3 m units: two for each
    of the n, which it has begun or is about to, m that wait, and two for each of the m, one of them in work.

    Args:
        object_store_bytes: a limit for Ray's own back-pressure as well; None is half of its object store.
        standing: told how the pools stand.

    Raises:
        StalledError: see `Patience`.
        StorageError, SpecError, StageError: what a stage raised.
    """
    stages = tuple((pool.stage.__name__.lower(), pool.actors) for pool in pools)
    watch = partial(_Watch, patience, stages, standing or Standing())
    with ray.data.DataContext.current(_context(object_store_bytes, watch)):
        units = _units(plan)
        for pool in pools:
            # A second unit in flight: Ray looks up only every 0.1 s, and the model's input has to arrive.
            compute = ray.data.ActorPoolStrategy(
                min_size=pool.least or pool.actors,
                max_size=pool.actors,
                initial_size=pool.least or pool.actors,
                max_tasks_in_flight_per_actor=2,
            )
            units = units.map_batches(
                pool.stage,
                fn_constructor_args=pool.arguments,
                compute=compute,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=pool.cpus,
                num_gpus=pool.gpus or None,
                label_selector=dict(pool.labels) or None,
            )
    try:
        for batch in units.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for text in batch["receipt"].to_pylist():
                yield Receipt.from_json(text)
    except _StalledError as error:
        raise StalledError(str(error)) from None
    except ray.exceptions.RayTaskError as error:
        raise _own(error) from error


def driver_seconds(units: int, actors: int) -> float:
    """What so many units take of the driver, of a pool of so many actors."""
    return units * (UNIT_SECONDS + UNIT_ACTOR_SECONDS * actors)


def most_actors(
    seconds: float, unit_seconds: float = UNIT_SECONDS, unit_actor_seconds: float = UNIT_ACTOR_SECONDS
) -> int:
    """So many actors, each of which takes so many seconds for a unit, one driver can lead.

    n of them ask for n / seconds units a second, and each costs it unit_seconds + n * unit_actor_seconds.
    """
    share = seconds * DRIVER_SHARE
    root = math.sqrt(unit_seconds**2 + 4 * unit_actor_seconds * share)
    return max(1, int((root - unit_seconds) / (2 * unit_actor_seconds)))


def _own(error: ray.exceptions.RayTaskError) -> Exception:
    """What a stage raised: Ray Data keeps no more of it than its traceback, among advice of its own."""
    raised = RAISED.findall(str(error))
    if not raised:
        return error
    name, text = raised[-1]
    if name == StorageError.__name__:
        return StorageError(text)
    return SpecListError([text]) if name in SPEC_ERRORS else StageError(f"{name}: {text}")


def _units(plan: Location) -> ray.data.Dataset:
    """A row of the plan a block; for reading it no CPU is asked for, because workers may hold them all."""
    # From its own folder, because Ray takes some characters of a path, such as "?", for a query.
    folder, _, name = plan.path.rpartition("/")
    return ray.data.read_parquet(
        name, filesystem=pafs.SubTreeFileSystem(folder, plan.filesystem), num_cpus=0, override_num_blocks=1
    )


def _context(object_store_bytes: int | None, watch: partial[_Watch]) -> ray.data.DataContext:
    """Settings of this run alone: those of the process, which may be a notebook, stay as they are."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0
    context.use_datasource_v2 = False  # it lists files in a task that asks for a CPU
    context.target_max_block_size = 1  # every row is a block of its own
    # With Ray's own ratio a producer that waits for room can hang when a node is lost.
    context.downstream_capacity_backpressure_ratio = None
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, _Room])
    if object_store_bytes is not None:
        context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
            object_store_memory=object_store_bytes
        )
    context.execution_no_progress_timeout_s = -1  # see _Watch
    context.custom_execution_callback_classes = [
        *context.custom_execution_callback_classes,
        watch,
    ]
    return context


class _Room(BackpressurePolicy):
    """Holds a stage back while as many units wait for the next one as that has workers.

    Ray's own policies count bytes: rows of a plan are so small that it would be read into the driver whole.
    """

    def can_add_input(self, operator: Any) -> bool:
        return not self._full(operator)

    def max_task_output_bytes_to_read(self, operator: Any) -> int | None:
        # What an actor has made lies in the object store already; but the plan's reader can pause.
        return 0 if not _workers(operator) and self._full(operator) else None

    def _full(self, operator: Any) -> bool:
        return any(
            self._topology[following].total_enqueued_input_blocks() >= _workers(following) > 0
            for following in operator.output_dependencies
        )


def _workers(operator: Any) -> int:
    """Actors of a pool, whether they run or not; 0 if it has none."""
    actors = operator.get_actor_info()
    return actors.running + actors.pending + actors.restarting


class _StalledError(ExecutionTimeoutError):
    """One of Ray's own errors, so that it passes without a trace of Ray's insides."""


class _Watch(ExecutionCallback):
    """Ends a run in which no unit is finished any more: Ray would wait for a lost node without end.

    Its own guard takes it for progress that the plan is still read.
    """

    def __init__(self, patience: Patience, stages: Stages, standing: Standing):
        self._patience, self._stages, self._standing = patience, stages, standing
        self._finished, self._since = -1, 0.0

    def on_execution_step(self, executor: Any) -> None:
        self._standing.pools = tuple(_states(executor._topology, self._stages))
        pools = [operator for operator in executor._topology if _workers(operator)]
        finished = sum(pool.metrics.num_tasks_finished for pool in pools)
        if finished != self._finished:
            self._finished, self._since = finished, time.monotonic()
            return
        seconds = time.monotonic() - self._since
        if seconds > self._patience.worker_seconds and (missing := " and ".join(_missing(pools))):
            there = ray.cluster_resources()
            has = " and ".join(f"{there.get(what, 0):g} {what}s" for what in ("CPU", "GPU"))
            raise _StalledError(
                f"no unit was finished for {seconds:.0f} s (ray.wait_seconds) while {missing} are missing; "
                f"this cluster has {has}: add a node, or ask for less; {GO_ON}"
            )
        if seconds > self._patience.unit_seconds:
            raise _StalledError(
                f"no unit was finished for {seconds:.0f} s, longer than the attempts at its inputs may take "
                f"(limits.timeout_seconds); {GO_ON}"
            )


def _states(topology: Any, stages: Stages) -> Iterator[PoolState]:
    """How the pools stand; of a pool that is done no worker is left."""
    pools = [operator for operator in topology if isinstance(operator, ActorPoolMapOperator)]
    for (name, actors), pool in zip(stages, pools, strict=False):
        tasks, running = pool.metrics.num_tasks_running, pool.get_actor_info().running
        waiting = topology[pool].total_enqueued_input_blocks() + max(0, tasks - running)
        wanted = 0 if pool.has_completed() else actors
        yield PoolState(name, wanted, running, min(tasks, running), waiting, pool.metrics.num_tasks_finished)


def _missing(pools: Sequence[Any]) -> Iterator[str]:
    """Which workers are waited for."""
    for pool in pools:
        wanted, running = _workers(pool), pool.get_actor_info().running
        if running < wanted and not pool.has_completed():
            labels = pool._ray_remote_args.get("label_selector") or {}
            where = " and ".join(f"{key}={value}" for key, value in labels.items())
            place = f" (on nodes with {where})" if where else ""
            yield f"{wanted - running} of {wanted} workers of {pool.name}{place}"
