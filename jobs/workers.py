"""Processes that work together, one on each worker, with a process group among them: by Ray Train."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from jobs.recipe import TrainWorkers
from jobs.room import Room
from pipeline.errors import SpecError

# Ray looks after its workers this often (2 s by default), so that one that is lost is soon replaced.
HEALTH_SECONDS = "1"
# Where a cluster decides how many workers there are, it may think again this often. A change costs the steps
# since the last checkpoint.
RESIZE_SECONDS = 60.0


class WorkerError(RuntimeError):
    """A worker failed, and the others with it; what it said."""


def launch(
    work: Callable[[dict[str, str]], None],
    spec: str,
    run: Path,
    wanted: TrainWorkers,
    max_failures: int,
    room: Room,
) -> None:
    """Call `work({"spec": spec})` on every worker until all are done; all again if one is lost.

    Raises:
        SpecError: there is no room for the workers, or no node with their labels.
        WorkerError: it failed more often than `max_failures`.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_SECONDS)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # its errors are raised, and told by us
    room.missing("resources.labels", wanted.labels)
    here = room.where(wanted.labels)
    gpus = wanted.gpus if wanted.gpus is not None else float(here.gpus > 0)
    for what, each, there in (("cpus", wanted.cpus, here.cpus), ("gpus", gpus, here.gpus)):
        if wanted.least * each > there and not room.may_grow:
            problem = f"{wanted.least * each:g} {what} are needed, there are {there:g}; lower it, or {what}"
            raise SpecError("resources.workers", wanted.workers, problem)
    resources = {"CPU": wanted.cpus} | ({"GPU": gpus} if gpus else {})
    notes = run / ".ray"  # Ray's, of this call alone: where to go on from is in the run's own folder
    trainer = TorchTrainer(
        work,
        train_loop_config={"spec": spec},
        scaling_config=ScalingConfig(
            num_workers=wanted.workers,
            use_gpu=gpus > 0,
            resources_per_worker=resources,
            label_selector=dict(room.chosen(wanted.labels)) or None,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(notes),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise WorkerError(_cause(error)) from error
    finally:
        shutil.rmtree(notes, ignore_errors=True)


def _cause(error: BaseException) -> str:
    """The last line of what a worker said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
