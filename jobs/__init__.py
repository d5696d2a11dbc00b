"""Jobs: a spec in, a report out. `jobs.run` is the whole system from Python, without a command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.metrics import Row
    from jobs.report import Report
    from jobs.spec import JobSpec
    from jobs.submission import Submitted


def run(
    spec: str | Path | Mapping[str, Any] | JobSpec,
    *,
    extend: bool = False,
    retry_failed: bool = False,
) -> Report | list[Row] | dict[str, Any]:
    """Run a job here, or on the cluster that RAY_ADDRESS or the spec names; the same call again resumes.

    Args:
        spec: a YAML file, the mapping it would hold, or a checked spec.
        extend: take up inputs that have come since the job was begun, or have changed.
        retry_failed: do again what failed.

    Returns:
        what was done; of a training job, all that was measured, step by step; of an evaluation, what was
        found of each dataset, and of a probe, what its report.json holds.

    Raises:
        pipeline.errors.SpecError: what is wrong with it, a line each; nothing was computed.
    """
    from rich.console import Console

    from jobs.evaluate import run_evaluate
    from jobs.probe import run_probe
    from jobs.progress import Progress
    from jobs.questions import ProbeSpec
    from jobs.runner import Again, run_job
    from jobs.spec import EvaluateSpec, TrainSpec, load
    from jobs.train import run_train

    checked = load(spec) if isinstance(spec, str | Path | Mapping) else spec
    progress = Progress(Console(stderr=True))
    if isinstance(checked, TrainSpec):
        return run_train(checked, progress)
    if isinstance(checked, EvaluateSpec):
        return run_evaluate(checked, progress)
    if isinstance(checked, ProbeSpec):
        return run_probe(checked, progress)
    return run_job(checked, progress, Again(extend, retry_failed))


def submit(
    spec: str | Path | Mapping[str, Any] | JobSpec,
    address: str | None = None,
    *,
    extend: bool = False,
    retry_failed: bool = False,
    watch_seconds: float | None = None,
) -> Submitted:
    """Send a job to a cluster; submitted again when it has ended, it resumes.

    Args:
        spec: as of `run`. Its paths must mean the same thing on the cluster's nodes.
        address: the cluster's job server, http://HEAD:8265; None is RAY_API_SERVER_ADDRESS.
        extend, retry_failed: as of `run`. watch_seconds: go on for ever, and take up what is new that often.

    Returns:
        the job, for its status(), logs(), follow(), wait() and stop().

    Raises:
        pipeline.errors.SpecError: what is wrong with it, or it is running already, or no server takes it.
    """
    from jobs.spec import load
    from jobs.submission import submit as send

    checked = load(spec) if isinstance(spec, str | Path | Mapping) else spec
    return send(checked, address, extend=extend, retry_failed=retry_failed, watch_seconds=watch_seconds)
