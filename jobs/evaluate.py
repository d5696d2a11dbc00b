"""`kind: evaluate`: a trained model on clips that it has not seen, all views of each; to report.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from jobs.cluster import connected
from jobs.progress import Progress
from jobs.spec import EvaluateSpec, dump, load
from jobs.workers import launch
from pipeline.errors import SpecError
from pipeline.lock import only_writer
from pipeline.storage import locate, write_atomic

REPORT = "report.json"


def run_evaluate(spec: EvaluateSpec, progress: Progress) -> dict[str, Any]:
    """What a model is worth: {dataset: {metric: value}}; also in RUN/report.json.

    Raises:
        SpecError: the checkpoint does not fit the shards or their labels; nothing was computed.
        WorkerError: a worker failed for good.
    """
    spec = spec.absolute()
    run = Path(spec.output.path)
    with only_writer(spec.output.path):
        strangers = [path.name for path in run.iterdir() if path.name[0] != "." and path.name not in OWN]
        if strangers:
            problem = f"holds other files ({strangers[0]}); choose a new folder"
            raise SpecError("output.path", str(run), problem)
        _check(spec)
        write_atomic(locate(str(run / "spec.yaml")), dump(spec).encode())
        progress.status("starting Ray ...")
        with connected(spec.ray.address) as room:
            launch(work, dump(spec), run, spec.resources, spec.failure.max_failures, room)
    found: dict[str, Any] = json.loads((run / REPORT).read_text())
    return found


OWN = {REPORT, "spec.yaml"}


def _check(spec: EvaluateSpec) -> None:
    """Raise here what every worker would."""
    from jobs.testing import opened

    opened(spec)


def work(config: dict[str, str]) -> None:
    """What a worker does."""
    import torch
    import torch.distributed as dist

    from jobs.testing import evaluate

    spec = load(yaml.safe_load(config["spec"]))
    assert isinstance(spec, EvaluateSpec)
    torch.set_num_threads(max(1, int(spec.resources.cpus)))
    found = evaluate(spec)
    if dist.get_rank() == 0:
        write_atomic(locate(f"{spec.output.path}/{REPORT}"), json.dumps(found, indent=1).encode())


def tables(found: dict[str, Any]) -> list[Table]:
    """For each dataset its numbers, and a row for each class."""
    made = []
    for name, scores in found.items():
        rows = scores["classes"]
        numbers = {key: value for key, value in scores.items() if key not in ("classes", "confusion")}
        said = "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())
        table = Table(title=f"{name}: {said}", title_justify="left")
        for key in rows[0]:
            table.add_column(key, justify="left" if key in ("class", "taken for") else "right")
        for row in rows:
            table.add_row(*map(_cell, row.values()))
        made.append(table)
    return made


def _cell(value: float | int | str | None) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
