"""What a run tells people: progress while it goes, then a table, report.json and report.html."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from pipeline.commits import Receipt, Run
from pipeline.storage import write_atomic

PLAIN_SECONDS = 10.0  # between two lines where the output is no terminal


@dataclass
class Report:
    """Totals of a run's folder, and the speed of the call that made this report."""

    kind: str
    model: str | None
    output: str
    units: int
    inputs: int
    inputs_are: str
    failed_inputs: int
    clips: int
    failures: int
    failures_by_reason: Mapping[str, int]
    output_bytes: int
    output_files: int
    wall_seconds: float  # of this call, from Ray's start to the manifest
    new_clips: int  # made by this call; the others were there already
    decode_seconds: float = 0.0  # of workers' time
    model_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    format: int = 1

    @property
    def clips_per_second(self) -> float:
        return self.new_clips / self.wall_seconds if self.wall_seconds else 0.0

    def table(self) -> Table:
        table = Table(show_header=False, title=f"{self.kind}: {self.model or 'shards'}", title_justify="left")
        rows = {
            self.inputs_are: f"{self.inputs:,}",
            "clips": f"{self.clips:,}"
            + ("" if self.new_clips == self.clips else f" ({self.new_clips:,} new)"),
            "failures": self._failures(),
            "clips/s": f"{self.clips_per_second:.2f} over {self.wall_seconds:.1f} s",
            "decode": f"{self.decode_seconds:.1f} s of workers' time",
            "model": f"{self.model_seconds:.1f} s of workers' time",
            "output": f"{self.output} ({self.output_files} files, {self.output_bytes / 1e6:,.1f} MB)",
        }
        if self.kind == "shard":
            del rows["model"]
        for name, value in rows.items():
            table.add_row(name, Text(value))  # a path may well hold what looks like markup
        return table

    def _failures(self) -> str:
        if not self.failures:
            return "none"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.failures_by_reason.items())
        return f"{self.failures:,}, in {self.failed_inputs:,} of {self.inputs:,} inputs ({reasons})"

    def write(self, run: Run) -> None:
        """report.json, and the same table as a page."""
        values = {**asdict(self), "clips_per_second": self.clips_per_second}
        write_atomic(run.place / "report.json", json.dumps(values, indent=1).encode())
        page = Console(record=True, width=110, file=io.StringIO())
        for note in self.notes:
            page.print(note, markup=False)
        page.print(self.table())
        write_atomic(run.place / "report.html", page.export_html().encode())


def measured(output: str, rows: Sequence[Mapping[str, float | int | str]]) -> Table:
    """What a training run came to: the last value of everything that it measured."""
    table = Table(show_header=False, title=f"train: {output}/model", title_justify="left")
    for name, value in {name: value for row in rows for name, value in row.items()}.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else f"{value:,}")
    return table


def failures_table(failures: pa.Table) -> Table:
    """By reason: inputs, rows that they gave all the same, an example."""
    table = Table(title="failures", title_justify="left")
    for column in ("reason", "stage"):
        table.add_column(column, no_wrap=True)
    for column in ("inputs", "of them empty"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("for example")
    kinds = Counter((row["reason"], row["stage"]) for row in failures.to_pylist())
    for (reason, stage), _ in kinds.most_common():
        rows = [row for row in failures.to_pylist() if (row["reason"], row["stage"]) == (reason, stage)]
        inputs, empty = {row["uri"] for row in rows}, {row["uri"] for row in rows if not row["rows"]}
        example = Text(f"{rows[0]['uri']}: {rows[0]['message']}")
        table.add_row(reason, stage, f"{len(inputs):,}", f"{len(empty):,}", example)
    return table


class Progress:
    """Live progress: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console):
        self.console = console
        self.notes: list[str] = []
        self._bar: Bar | None = None
        self._said = 0.0
        self.interrupted: int | None = None  # by this signal

    def interrupt(self, number: int, *_: object) -> None:
        """Handler of a signal: stop now, or at the next sign of progress if a library swallows it here."""
        self.interrupted = number
        raise KeyboardInterrupt

    def note(self, text: str, style: str = "") -> None:
        """A line that also goes into the report."""
        self.notes.append(text)
        self.console.print(text, style=style, highlight=False, markup=False)

    def status(self, text: str) -> None:
        """What is being done now, if nothing is shown yet."""
        self.console.print(text, style="dim", highlight=False)

    def _heed_interrupt(self) -> None:
        if self.interrupted is not None:
            raise KeyboardInterrupt

    def start(self, units: int, done_units: int) -> None:
        self._heed_interrupt()
        self._units, self._done, self._made, self._failed = units, done_units, 0, 0
        self._begun = self._said = time.monotonic()
        if self.console.is_terminal:
            self._bar = Bar(
                TextColumn("units"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=units, completed=done_units)
            self._bar.start()

    def advance(self, receipt: Receipt) -> None:
        self._heed_interrupt()
        self._done += 1
        self._made += receipt.clips
        self._failed += receipt.failures
        text = self._text()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=text)
        elif time.monotonic() - self._said >= PLAIN_SECONDS or self._done == self._units:
            self._said = time.monotonic()
            self.console.print(f"units {self._done}/{self._units}  {text}", highlight=False)

    def trained(self, row: Mapping[str, float | int | str], steps: int) -> None:
        """A row of a training run's metrics."""
        rest = [f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, float)]
        self.console.print(f"step {row['step']:,}/{steps:,}  {'  '.join(rest)}", highlight=False)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _text(self) -> str:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        return f"{self._made:,} clips  {self._made / seconds:.2f}/s  {self._failed:,} failures"
