"""What a training run measured, step by step: RUN/metrics.jsonl, and the same for TensorBoard."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.logs import Sink
from pipeline.errors import Failure
from pipeline.storage import locate, write_atomic

log = logging.getLogger(__name__)

Row = dict[str, float | int | str]
FILE = "metrics.jsonl"
FAILURES = "failures.jsonl"
BOARD = "tensorboard"


class Meter:
    """Means over some steps, and how fast they went."""

    def __init__(self, batch: int) -> None:
        self._batch, self._seconds, self._waited = batch, 0.0, 0.0
        self._rows: list[Mapping[str, float]] = []

    def add(self, seconds: float, waited_seconds: float, found: Mapping[str, float]) -> None:
        """A step: how long it took, and how long of that it had to wait for its clips."""
        self._seconds += seconds
        self._waited += waited_seconds
        self._rows.append(found)

    def row(self, step: int, over_ranks: Callable[[float], float]) -> Row:
        """All means, over all processes too."""
        row: Row = {"step": step}
        for name in self._rows[0]:
            row[name] = over_ranks(sum(found[name] for found in self._rows) / len(self._rows))
        row["clips_per_second"] = len(self._rows) * self._batch / self._seconds
        row["waited"] = self._waited / self._seconds
        return row


class Metrics:
    """Appends rows, {"step": steps done, name: value, ...}; one with "resumed" takes back what came later.

    sinks: which are given them too. One that fails is given no more, and the run goes on: here all rows are.
    """

    def __init__(self, run: Path, sinks: Sequence[Sink] = ()) -> None:
        from tensorboardX import SummaryWriter  # which only the process that writes needs

        self._path, self._sinks = run / FILE, list(sinks)
        self._board = SummaryWriter(str(run / BOARD), flush_secs=10)

    def __call__(self, row: Row) -> None:
        step = int(row["step"])
        if "resumed" in row:
            kept = [old for old in read(self._path.parent) if int(old["step"]) <= step]
            write_atomic(locate(str(self._path)), "".join(f"{json.dumps(old)}\n" for old in kept).encode())
            return
        with self._path.open("a") as file:
            file.write(f"{json.dumps(row)}\n")
        values = {name: float(value) for name, value in row.items() if name != "step"}
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        for sink in list(self._sinks):
            with self._dispensable(sink):
                sink(values, step)

    def close(self) -> None:
        self._board.close()
        for sink in list(self._sinks):
            with self._dispensable(sink):
                sink.close()

    @contextmanager
    def _dispensable(self, sink: Sink) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever its client raises
            log.warning(
                "%s is given no more rows (%s); all are in %s", type(sink).__name__, error, self._path
            )
            self._sinks.remove(sink)


def name_failures(run: Path, step: int, failures: Iterable[Failure]) -> None:
    """Add inputs to RUN/failures.jsonl that are not there yet, with the step by which they were missed."""
    there = list(read(run, FAILURES))
    named = {row["uri"] for row in there}
    for one in failures:
        if one.uri not in named:
            named.add(one.uri)
            there.append({"uri": one.uri, "reason": one.reason, "message": one.message, "step": step})
    write_atomic(locate(str(run / FAILURES)), "".join(f"{json.dumps(row)}\n" for row in there).encode())


def read(run: Path, file: str = FILE) -> Iterator[Row]:
    """All rows so far; one that is still being written, or never was to its end, is left out."""
    path = run / file
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        with suppress(json.JSONDecodeError):
            if line.endswith("\n"):
                yield json.loads(line)
