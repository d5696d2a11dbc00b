"""`kind: train`: one training process on each worker, by Ray Train; checked here, watched from here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import yaml

from jobs import logs
from jobs.cluster import connected
from jobs.curves import page
from jobs.metrics import Row, read
from jobs.progress import Progress
from jobs.questions import ProbeSpec
from jobs.room import Room
from jobs.spec import TrainSpec, difference, dump, load
from jobs.workers import WorkerError, launch
from pipeline.attempts import longest_seconds
from pipeline.errors import SpecError, StorageError
from pipeline.lock import only_writer
from pipeline.pools import StalledError
from pipeline.storage import locate, write_atomic

SPEC = "spec.yaml"
MODEL = "model"
FAILED = ".failed"  # a file in which workers say why they gave up
WATCH_SECONDS = 0.5


def run_train(spec: TrainSpec, progress: Progress) -> list[Row]:
    """Train, or go on from the last checkpoint; all that was measured, step by step.

    Raises:
        SpecError: the spec does not fit its data, or the folder belongs to another; nothing was computed.
        WorkerError: more failures than the spec allows, or the loss was no number any more.
    """
    spec = spec.absolute()
    run = Path(spec.output.path)
    with only_writer(spec.output.path):
        again = begun(run, spec)
        if not (run / MODEL / "config.json").exists():
            _check(spec, run)
            if not again:
                write_atomic(locate(str(run / SPEC)), dump(spec).encode())
            progress.status("starting Ray ...")
            with connected(spec.ray.address) as room:
                _fit(spec, run, room, progress)
    rows = list(read(run))
    last = {name: value for row in rows for name, value in row.items()}
    report = {"kind": spec.kind, "model": spec.model.name, "output": str(run), **last}
    write_atomic(locate(str(run / "report.json")), json.dumps(report, indent=1).encode())
    write_atomic(locate(str(run / "report.html")), page(f"{spec.model.name}: {run}", rows).encode())
    return rows


def begun(run: Path, spec: TrainSpec | ProbeSpec) -> bool:
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


def _check(spec: TrainSpec, run: Path) -> None:
    """Raise here what every worker would."""
    from jobs import checkpoints
    from jobs.materials import check, held, materials

    logs.check(spec.logs)
    data = materials(spec, run)
    check(spec, data)
    for step in checkpoints.steps(run)[-1:]:
        checkpoints.check(run, step, held(spec, data))


def _fit(spec: TrainSpec, run: Path, room: Room, progress: Progress) -> None:
    """Ray Train in a thread of its own: it would take SIGINT for itself; here the metrics are told of."""
    from jobs.loop import STOP

    stop, failed = run / STOP, run / FAILED
    for path in (stop, failed):
        path.unlink(missing_ok=True)
    labels = spec.resources.decode.labels
    if waiting := room.missing("resources.decode.labels", labels):
        progress.note(waiting)
    here = partial(work, decoders=decoders(spec, room), labels=room.chosen(labels))
    arguments = (here, dump(spec), run, spec.resources, spec.failure.max_failures, room)
    thread = ThreadPoolExecutor(1)
    fitting, told = thread.submit(launch, *arguments), len(list(read(run)))
    while not fitting.done():
        try:
            wait([fitting], WATCH_SECONDS)
            told = _tell(run, spec, progress, told)
        except KeyboardInterrupt:
            if stop.exists():  # asked again: now
                thread.shutdown(wait=False)
                raise
            stop.touch()
            progress.status("saving a checkpoint ...")
    _tell(run, spec, progress, told)
    if failed.exists():
        raise WorkerError(failed.read_text())
    fitting.result()
    if stop.exists():
        raise KeyboardInterrupt


def decoders(spec: TrainSpec, room: Room) -> int:
    """How many videos are decoded at a time, a core each. SpecError if workers leave no room for them."""
    wanted, asked, labels = spec.resources, spec.resources.decode.actors, spec.resources.decode.labels
    beside = 0.0 if room.apart(labels, wanted.labels) else wanted.most * wanted.cpus
    # That of Ray's own small tasks will do, unless there are nodes to choose from.
    free = max(0 if room.chosen(labels) else 1, int(room.where(labels).cpus - beside))
    if spec.decodes and (asked or 1) > free and not room.may_grow:
        problem = f"the workers leave room for {free}; lower it, or resources.workers"
        raise SpecError("resources.decode.actors", asked or 1, problem)
    return asked or max(1, free)


def _tell(run: Path, spec: TrainSpec, progress: Progress, told: int) -> int:
    """Show the rows of the metrics that are new; how many there are now."""
    rows = list(read(run))
    for row in rows[min(told, len(rows)) :]:  # a restart takes some back
        progress.trained(row, spec.recipe.steps)
    return len(rows)


def work(config: dict[str, str], decoders: int, labels: Mapping[str, str]) -> None:
    """What a worker does.

    decoders: of all workers together. labels: of the nodes that they run on.
    """
    import torch
    import torch.distributed as dist

    from jobs.checkpoints import steps
    from jobs.decoders import Decoders
    from jobs.loop import DivergedError, train
    from jobs.metrics import Metrics

    spec = load(yaml.safe_load(config["spec"]))
    assert isinstance(spec, TrainSpec)
    run = Path(spec.output.path)
    if (run / FAILED).exists():  # one that gave up took the others with it, and Ray begins again
        return
    torch.set_num_threads(max(1, int(spec.resources.cpus)))
    first = dist.get_rank() == 0
    metrics = Metrics(run, logs.sinks(spec.logs, run, spec.model_dump(mode="json"))) if first else None
    if metrics is not None:  # what came after the last checkpoint comes again
        last = (steps(run) or [0])[-1]
        metrics({"step": last, "resumed": last})
    try:
        wait_seconds = spec.ray.wait_seconds + longest_seconds(spec.limits.timeout_seconds)
        reader = Decoders(max(1, decoders // dist.get_world_size()), labels, wait_seconds)
        train(spec, run, metrics or (lambda row: None), reader)
    except (DivergedError, StorageError, StalledError) as error:  # to try again would come to the same
        _give_up(run, error)
        if dist.get_world_size() > 1:  # of which others may wait for this one
            raise
    finally:
        if metrics is not None:
            metrics.close()


def _give_up(run: Path, error: Exception) -> None:
    """Say why, so that Ray's next attempt, if there is one, comes to nothing."""
    try:
        (run / FAILED).write_text(str(error))
    except OSError:  # no room even for that
        raise error from None
