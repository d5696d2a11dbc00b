"""Jobs: a spec in, a report out. `jobs.run` is the whole system from Python, without a command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.report import Report
    from jobs.spec import EmbedSpec, ShardSpec


def run(
    spec: str | Path | Mapping[str, Any] | ShardSpec | EmbedSpec,
    *,
    extend: bool = False,
    retry_failed: bool = False,
) -> Report:
    """Run a job here, or on the cluster that RAY_ADDRESS or the spec names; the same call again resumes.

    Args:
        spec: a YAML file, the mapping it would hold, or a checked spec.
        extend: take up inputs that have come since the job was begun, or have changed.
        retry_failed: do again what failed.

    Raises:
        pipeline.errors.SpecError: what is wrong with it, a line each; nothing was computed.
    """
    from rich.console import Console

    from jobs.report import Progress
    from jobs.runner import Again, run_job
    from jobs.spec import load

    checked = load(spec) if isinstance(spec, str | Path | Mapping) else spec
    return run_job(checked, Progress(Console(stderr=True)), Again(extend, retry_failed))
