"""What a run tells people while it goes: on a terminal live, stage by stage; elsewhere a line at times."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipeline.commits import Receipt

PLAIN_SECONDS = 10.0  # between two lines where the output is no terminal


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
