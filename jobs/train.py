"""`kind: train`: one training process on each worker, by Ray Train; checked here, watched from here."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event, Thread

import yaml

from jobs.cluster import Room, connected
from jobs.metrics import Row, read
from jobs.report import Progress
from jobs.spec import TrainSpec, difference, dump, load
from jobs.workers import launch
from pipeline.errors import SpecError
from pipeline.lock import only_writer
from pipeline.storage import locate, write_atomic

SPEC = "spec.yaml"
MODEL = "model"
WATCH_SECONDS = 0.5


def run_train(spec: TrainSpec, progress: Progress) -> list[Row]:
    """Train, or go on from the last checkpoint; all that was measured, step by step.

    Raises:
        SpecError: the spec does not fit its data, or the folder belongs to another; nothing was computed.
        WorkerError: more failures than the spec allows, or the loss was no number any more.
    """
    spec = spec.absolute()
    if "://" in spec.output.path:
        problem = "training writes to a folder that all its workers see; give a path"
        raise SpecError("output.path", spec.output.path, problem)
    run = Path(spec.output.path)
    with only_writer(spec.output.path):
        begun = _begun(run, spec)
        if not (run / MODEL / "config.json").exists():
            _check(spec)
            if not begun:
                write_atomic(locate(str(run / SPEC)), dump(spec).encode())
            progress.status("starting Ray ...")
            with connected(spec.ray.address) as room:
                _fit(spec, run, room, progress)
    return list(read(run))


def _begun(run: Path, spec: TrainSpec) -> bool:
    """Whether an earlier call has begun this job in the folder; SpecError if it is another's."""
    path = run / SPEC
    if path.exists():
        old = load(yaml.safe_load(path.read_text()))
        changed = list(difference(old.identity(), spec.identity()))
        if changed:
            shown = "; ".join(changed[:3]) + ("; ..." if len(changed) > 3 else "")
            problem = f"belongs to another spec ({shown}); choose a new folder"
            raise SpecError("output.path", str(run), problem)
        return True
    strangers = [entry.name for entry in run.iterdir() if not entry.name.startswith(".")]
    if strangers:
        raise SpecError("output.path", str(run), f"holds other files ({strangers[0]}); choose a new folder")
    return False


def _check(spec: TrainSpec) -> None:
    """Raise here what every worker would."""
    from jobs.materials import check, materials

    check(spec, materials(spec))


def _fit(spec: TrainSpec, run: Path, room: Room, progress: Progress) -> None:
    done = Event()
    watcher = Thread(target=_watch, args=(run, spec, progress, done), daemon=True)
    watcher.start()
    try:
        launch(work, dump(spec), run, spec.resources, spec.failure.max_failures, room)
    finally:
        done.set()
        watcher.join()


def work(config: dict[str, str]) -> None:
    """What a worker does."""
    import torch

    from jobs.loop import train
    from jobs.metrics import Metrics

    spec = load(yaml.safe_load(config["spec"]))
    assert isinstance(spec, TrainSpec)
    run = Path(spec.output.path)
    torch.set_num_threads(max(1, int(spec.resources.cpus)))
    import torch.distributed as dist

    metrics = Metrics(run) if dist.get_rank() == 0 else None
    try:
        train(spec, run, metrics or (lambda row: None))
    finally:
        if metrics is not None:
            metrics.close()


def _watch(run: Path, spec: TrainSpec, progress: Progress, done: Event) -> None:
    """Tell of each new row of the run's metrics."""
    told = 0
    while True:
        last = done.is_set()
        rows = list(read(run))
        for row in rows[min(told, len(rows)) :]:
            progress.trained(row, spec.recipe.steps)
        told = len(rows)
        if last:
            return
        time.sleep(WATCH_SECONDS)
