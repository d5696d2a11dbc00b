"""The commands about jobs on a cluster: submit, status, logs, stop, list."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.options import Extend, Output, Overrides, RetryFailed, SpecPath, Watch, load_spec

if TYPE_CHECKING:
    from jobs.submission import Submitted

out = Console()
err = Console(stderr=True)

Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="URL", help="The job server, http://HEAD:8265 (RAY_API_SERVER_ADDRESS)."
    ),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="As `tubelet submit` said it; `tubelet list` has all.")]


def submit(
    spec: SpecPath,
    address: Address = None,
    set_: Overrides = None,
    output: Output = None,
    extend: Extend = False,
    retry_failed: RetryFailed = False,
    watch: Watch = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; exit code as `status`.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Wait, and print what it prints.")] = False,
) -> None:
    """Send a job to a cluster, with this code; prints its id. Submitted again when it has ended, it resumes.

    Paths in the spec must mean the same on the cluster's nodes.
    """
    from jobs.submission import submit as send

    checked = load_spec(spec, set_, output)
    job = send(checked, address, extend=extend, retry_failed=retry_failed, watch_seconds=watch)
    print(job.submission_id, flush=True)
    if follow or wait:
        _to_its_end(job, follow)


def status(submission_id: Id, address: Address = None) -> None:
    """Tell what has become of a job. Exit code: 0 succeeded, 1 failed, 3 stopped, 4 not ended yet."""
    from jobs.submission import EXIT_CODES, status_of

    details = _job(submission_id, address).details()
    found = status_of(details)
    print(found)
    err.print(details.message or "", style="dim", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(EXIT_CODES[found])


def logs(
    submission_id: Id,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until it has ended; exit code as `status`.")
    ] = False,
) -> None:
    """Print what a job has printed."""
    job = _job(submission_id, address)
    if follow:
        _to_its_end(job, follow)
    job.status()  # says so if there is none
    print(job.logs(), end="")


def stop(submission_id: Id, address: Address = None) -> None:
    """End a job, and wait until it has: what it has done stays. Exit code 4 if it takes too long."""
    from jobs.submission import ENDED, EXIT_CODES

    job = _job(submission_id, address)
    found = job.stop()
    print(found)
    if found not in ENDED:
        raise typer.Exit(EXIT_CODES[found])


def list_jobs(
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List the jobs that were submitted to a cluster, the latest last."""
    from jobs.server import connect
    from jobs.submission import listed

    rows = listed(connect(address))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table()
    for column in ("id", "status", "begun (UTC)", "output"):
        table.add_column(column, no_wrap=column != "output", overflow="fold")
    for row in rows:
        begun = (row["begun"] or "")[: len("2000-01-01T00:00")].replace("T", " ")
        table.add_row(*(Text(text or "") for text in (row["id"], row["status"], begun, row["output"])))
    out.print(table)


# By the names that the command line has for them.
COMMANDS: dict[str, Callable[..., None]] = {
    "submit": submit, "status": status, "logs": logs, "stop": stop, "list": list_jobs,
}  # fmt: skip


def _job(submission_id: str, address: str | None) -> Submitted:
    from jobs.server import connect
    from jobs.submission import Submitted

    return Submitted(connect(address), submission_id)


def _to_its_end(job: Submitted, follow: bool) -> NoReturn:
    """Wait for a job, and leave with the exit code of what became of it."""
    from jobs.submission import EXIT_CODES

    try:
        if follow:
            for text in job.follow():
                print(text, end="", flush=True)
        found = job.wait()
    except KeyboardInterrupt:
        err.print(f"the job goes on; `tubelet stop {job.submission_id}` ends it", highlight=False)
        raise typer.Exit(130) from None
    err.print(found, highlight=False)
    raise typer.Exit(EXIT_CODES[found])
