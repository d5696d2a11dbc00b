"""Where else a training run's metrics go, if its spec says so: to Weights & Biases, to MLflow."""

from __future__ import annotations

import importlib
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import SpecListError
from pipeline.plan import Frozen


class Wandb(Frozen):
    """A project of Weights & Biases; entity: whose, if not that of who is logged in on the first worker."""

    project: str
    entity: str | None = None


class Mlflow(Frozen):
    """An experiment of MLflow; uri: of its tracking server (a database needs all of MLflow installed)."""

    uri: str
    experiment: str


class Logs(Frozen):
    """What is kept besides metrics.jsonl and TensorBoard's; each needs its package, as in tubelet[wandb]."""

    wandb: Wandb | None = None
    mlflow: Mlflow | None = None


class Sink(Protocol):
    """Takes what was measured at a step. Whatever its client raises, it raises."""

    def __call__(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class WandbRun:
    """A run of Weights & Biases that goes on when the job does: RUN/.wandb_run has its id."""

    def __init__(self, wanted: Wandb, run: Path, spec: Mapping[str, Any]) -> None:
        kept = run / ".wandb_run"
        if not kept.exists():
            kept.write_text(uuid.uuid4().hex)
        self._run = _package("wandb").init(
            project=wanted.project, entity=wanted.entity, name=run.name, id=kept.read_text(), resume="allow",
            dir=str(run), config=dict(spec),
        )  # fmt: skip

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowRun:
    """A run of MLflow that goes on when the job does: RUN/.mlflow_run has its id."""

    def __init__(self, wanted: Mlflow, run: Path, spec: Mapping[str, Any]) -> None:
        kept, self._mlflow = run / ".mlflow_run", _package("mlflow")
        self._mlflow.set_tracking_uri(wanted.uri)
        self._mlflow.set_experiment(wanted.experiment)
        if kept.exists():
            self._mlflow.start_run(run_id=kept.read_text())
            return
        begun = self._mlflow.start_run(run_name=run.name)
        self._mlflow.log_params(dict(_flat(spec)))
        kept.write_text(begun.info.run_id)

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        allowed = {re.sub(r"[^\w./ -]", "", name): value for name, value in values.items()}
        self._mlflow.log_metrics(allowed, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def sinks(wanted: Logs, run: Path, spec: Mapping[str, Any]) -> list[Sink]:
    """All that a spec names, begun or gone on with; `spec` is kept there as the run's settings."""
    found: list[Sink] = []
    if wanted.wandb is not None:
        found.append(WandbRun(wanted.wandb, run, spec))
    if wanted.mlflow is not None:
        found.append(MlflowRun(wanted.mlflow, run, spec))
    return found


def check(wanted: Logs) -> None:
    """SpecError if a package is not installed."""
    for name in ("wandb", "mlflow"):
        if getattr(wanted, name) is not None:
            _package(name)


def _package(name: str) -> Any:
    try:
        found = importlib.import_module(name)
    except ImportError:
        found = None
    if getattr(found, "__file__", None) is None:  # Python takes a mere folder of that name for a package
        problem = f"the package {name} is not installed: pip install 'tubelet[{name}]', or leave it out"
        raise SpecListError([f"logs.{name}: {problem}"])
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Of nested mappings: ("recipe.batch", 64), ..."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
