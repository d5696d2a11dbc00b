"""What a training run measured, step by step: RUN/metrics.jsonl, and the same for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.storage import locate, write_atomic

Row = dict[str, float | int | str]
FILE = "metrics.jsonl"
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
    """Appends rows, {"step": steps done, name: value, ...}; one with "resumed" takes back what came later."""

    def __init__(self, run: Path) -> None:
        from tensorboardX import SummaryWriter  # which only the process that writes needs

        self._path = run / FILE
        self._board = SummaryWriter(str(run / BOARD), flush_secs=10)

    def __call__(self, row: Row) -> None:
        step = int(row["step"])
        if "resumed" in row:
            kept = [old for old in read(self._path.parent) if int(old["step"]) <= step]
            write_atomic(locate(str(self._path)), "".join(f"{json.dumps(old)}\n" for old in kept).encode())
            return
        with self._path.open("a") as file:
            file.write(f"{json.dumps(row)}\n")
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, float(value), step)

    def close(self) -> None:
        self._board.close()


def read(run: Path) -> Iterator[Row]:
    """All rows so far; one that is still being written, or never was to its end, is left out."""
    path = run / FILE
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        with suppress(json.JSONDecodeError):
            if line.endswith("\n"):
                yield json.loads(line)
