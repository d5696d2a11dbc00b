"""What several commands take: a spec, changes to it, and what else to do with its inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jobs.spec import JobSpec

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="A job spec; jobs/specs has examples.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override a field of the spec; repeatable.")
]
Output = Annotated[str | None, typer.Option("--output", metavar="DIR", help="Same as --set output.path=DIR.")]
Extend = Annotated[bool, typer.Option("--extend", help="Take up inputs that are new or changed.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Do again what failed.")]
Watch = Annotated[
    float | None,
    typer.Option("--watch", metavar="SECONDS", min=1.0, help="Go on for ever: --extend that often."),
]


def load_spec(spec: Path, overrides: list[str] | None, output: str | None) -> JobSpec:
    """The spec of a command line."""
    from jobs.spec import load

    changes = list(overrides or ()) + ([f"output.path={json.dumps(output)}"] if output is not None else [])
    return load(spec, tuple(changes))
