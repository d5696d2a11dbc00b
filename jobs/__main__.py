"""The command line: `tubelet ...`, or `python -m jobs ...`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs import remote
from jobs.options import Extend, Output, Overrides, RetryFailed, SpecPath, Watch, load_spec
from jobs.render import render
from pipeline.errors import SpecError, SpecListError, StorageError

app = typer.Typer(
    help="Streaming video analytics on sparse tubes: shard, embed and verify video corpora, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)


@app.command()
def run(
    spec: SpecPath,
    set_: Overrides = None,
    output: Output = None,
    extend: Extend = False,
    retry_failed: RetryFailed = False,
    watch: Watch = None,
) -> None:
    """Run a job here, or on the cluster of RAY_ADDRESS. The same command again resumes it."""
    from jobs import evaluate, probe
    from jobs.progress import Progress
    from jobs.questions import ProbeSpec
    from jobs.report import measured
    from jobs.runner import Again, run_job
    from jobs.spec import EmbedSpec, ShardSpec, TrainSpec
    from jobs.train import run_train

    progress = Progress(err)
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, progress.interrupt) for number in signals]
    try:
        checked, again = load_spec(spec, set_, output), Again(extend, retry_failed, watch)
        if isinstance(checked, ShardSpec | EmbedSpec):
            found = [run_job(checked, progress, again).table()]
        elif again.wanted:
            options = "--extend, --retry-failed, --watch"
            raise SpecError(options, True, f"a job of kind {checked.kind} takes none of these")
        elif isinstance(checked, TrainSpec):
            found = [measured(checked.output.path, run_train(checked, progress))]
        elif isinstance(checked, ProbeSpec):
            found = probe.tables(probe.run_probe(checked, progress))
        else:
            found = evaluate.tables(evaluate.run_evaluate(checked, progress))
    except (KeyboardInterrupt, SystemExit) as stopped:
        # While Ray starts it has a handler of its own, which exits with the signal's number.
        number = stopped.code if isinstance(stopped, SystemExit) else progress.interrupted or signal.SIGINT
        if number not in signals:
            raise
        err.print("interrupted; what is committed stays, and the same command goes on from there")
        # Everything is closed by now. Leaving in the usual way would join Ray's threads, and one that was
        # interrupted while it started can crash the interpreter on its way out.
        os._exit(128 + int(number))
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
    for table in found:
        out.print(table)


@app.command()
def failures(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A run's output folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Every failure, machine-readable.")] = False,
) -> None:
    """Show what a run lost, by reason: how many inputs, how many rows all the same, and an example."""
    from jobs.report import failures_table
    from pipeline.verify import failures as find

    found = find(folder)
    if as_json:
        print(json.dumps(found.to_pylist(), indent=1))
    elif found.num_rows:
        out.print(failures_table(found))
        out.print("tubelet run SPEC.yaml --retry-failed does these inputs again", highlight=False)
    else:
        out.print("no failures", highlight=False)


@app.command()
def plan(
    spec: SpecPath,
    set_: Overrides = None,
    output: Output = None,
    seconds: Annotated[
        float,
        typer.Option(min=0.0, help="How long to decode and embed a sample; 0: look at headers only."),
    ] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Check a spec, its input and its workers; say what a run would come to, by a sample that is measured.

    What it says is kept in the output folder, where the run's report compares it with what came true.
    """
    from jobs.estimate import estimate
    from jobs.hindsight import keep
    from jobs.spec import EmbedSpec, ShardSpec
    from jobs.survey import survey

    checked = load_spec(spec, set_, output)
    if isinstance(checked, ShardSpec | EmbedSpec):
        foreseen = survey(checked, seconds)
        kept = keep(foreseen)
        if as_json:
            print(json.dumps(foreseen.values(), indent=1))
            return
        out.print(foreseen.table())
        for note in (*foreseen.notes, *kept):
            out.print(note, highlight=False, markup=False, soft_wrap=True)
        return
    found = estimate(checked)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table(show_header=False)
    for name, value in found.items():
        table.add_row(name, Text(f"{value:,}" if isinstance(value, int) else str(value)))
    out.print(table)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One model; all of them by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List the models: tokens, parameters, what of them trains, work and bytes per view."""
    import models as registry

    names = [name] if name is not None else registry.names()
    try:
        found = [registry.describe(one) for one in names]
    except ValueError as error:
        raise SpecError("NAME", name, str(error).partition(": ")[2]) from None
    if as_json:
        print(json.dumps([asdict(summary) for summary in found], indent=1))
        return
    caption = "views of 32 x 224 x 224 px; a multiply-add is two operations; more: tubelet models NAME"
    table = Table(caption=caption if name is None else None, caption_justify="left", padding=(0, 0))
    table.add_column("model", no_wrap=True)
    for column in ("tokens", "params", "trained", "GFLOPs", "KB/clip", "dim"):
        table.add_column(column, justify="right", no_wrap=True)
    for s in found:
        sizes = (f"{n / 1e6:.1f} M" for n in (s.parameters, s.trainable))
        work = (f"{s.gflops_per_view:,.0f}", f"{s.bytes_per_clip / 1e3:,.0f}", str(s.dim))
        table.add_row(s.name, f"{s.tokens:,}", *sizes, *work)
    out.print(table)
    if name is not None:
        images = "takes" if found[0].images else "does not take"
        out.print(f"{found[0].doc}; {images} images", highlight=False)
        out.print(str(registry.plan(name)), highlight=False)


@app.command()
def inspect(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video or an image: a path, or a URI.")],
    output: Annotated[str, typer.Option(metavar="FILE.png", help="Where to draw: a .png or a .jpg.")],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose tubes: `tubelet models` lists them.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Its weights: draw its kernels and attention too, beside FILE."),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Sampled frames of a clip (the checkpoint's, or 32).")
    ] = None,
    stride: Annotated[int | None, typer.Option(help="Every so many frames of the video (2).")] = None,
    fps: Annotated[float | None, typer.Option(help="Or so many frames a second.")] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Of the canvas in pixels (the checkpoint's, or 224x224)."),
    ] = None,
    filter: Annotated[
        str | None, typer.Option(help="Scaling: area, bilinear, bicubic (the checkpoint's, or area).")
    ] = None,
    end: Annotated[str, typer.Option(help="Past the end: repeat, loop or drop.")] = "repeat",
    clips: Annotated[int, typer.Option(help="How many clips to spread over the video.")] = 1,
    clip: Annotated[int | None, typer.Option(help="Which of them, from 0 on (the middle one).")] = None,
    start_seconds: Annotated[float | None, typer.Option(help="Only what is shown from here on.")] = None,
    end_seconds: Annotated[float | None, typer.Option(help="Only what is shown before.")] = None,
) -> None:
    """Draw the sampled frames of a clip, and on them what a model looks at: every tube's footprint.

    With a checkpoint, what it has learned as well: x-kernels.png, and x-attention.png, where it looks.
    """
    from pydantic import ValidationError

    from jobs.drawing import inspect as draw_clip
    from jobs.mistakes import explain
    from jobs.model import saved
    from jobs.pictures import stored
    from models.config import ModelConfig
    from pipeline.sampling import Sampling

    checkpoint = saved(checkpoint, "--checkpoint")
    config = ModelConfig(name=model or "") if checkpoint is None else stored(checkpoint, model)
    asked = {"stride": stride, "fps": fps, "end": end, "clips": clips}
    asked["frames"] = config.frames if frames is None else frames
    asked["filter"] = config.filter if filter is None else filter
    asked["height_px"], asked["width_px"] = config.size
    if size is not None:
        sides = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", size)
        if sides is None:
            raise SpecError("--size", size, "write it as HEIGHTxWIDTH in pixels, for example 224x224")
        asked["height_px"], asked["width_px"] = map(int, sides.groups())
    try:
        sampling = Sampling.model_validate(asked)
    except ValidationError as error:
        # What is wrong with several options together begins with their names already.
        raise SpecListError([f"--{line.removeprefix('spec: ')}" for line in explain(error, {})]) from None
    drawn = draw_clip(video, model, output, sampling, clip, (start_seconds, end_seconds), checkpoint)
    for name, image in drawn.items():
        out.print(f"{name}: {image.width} x {image.height} px", highlight=False, markup=False, soft_wrap=True)


@app.command()
def verify(folder: Annotated[str, typer.Argument(metavar="DIR", help="A run's output folder.")]) -> None:
    """Check a run's output: checksums, counts, doubled rows, strangers. Exit code 1 if anything is wrong."""
    from pipeline.verify import verify as check

    found = check(folder)
    for problem in found.problems:
        out.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)
    out.print(
        f"{found.units} units, {found.rows:,} rows, {found.failures:,} failures, {found.files} files: "
        + (f"{len(found.problems)} problems" if found.problems else "all well"),
        highlight=False,
    )
    if found.problems:
        raise typer.Exit(1)


for command, do in remote.COMMANDS.items():
    app.command(command)(do)


app.command()(render)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a job spec, for editors."""
    from jobs.spec import schema as job_schema

    print(json.dumps(job_schema(), indent=1))


def main() -> None:
    """Run the command line: exit code 2 for a request that cannot be met, 1 for a job that failed."""
    try:
        app()
    except SpecError as error:
        for line in str(error).splitlines():
            err.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        err.print(f"failed: {lines[-1].strip()}", style="red", highlight=False, markup=False, soft_wrap=True)
        if not isinstance(error, StorageError):
            log = Path(tempfile.gettempdir()) / f"tubelet-error-{os.getpid()}.log"
            with contextlib.suppress(OSError):
                log.write_text("".join(traceback.format_exception(error)))
                err.print(f"the whole story is in {log}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
