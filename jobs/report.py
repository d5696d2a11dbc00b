"""What a run came to: report.json, and tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa
from rich.table import Table
from rich.text import Text

from jobs.hindsight import COMPARED, Comparison
from jobs.timeline import Timeline
from jobs.words import duration, size
from pipeline.commits import Receipt
from pipeline.storage import Location, write_atomic

FORMAT = 2
FILE = "report.json"
HOUR_SECONDS = 3600.0


@dataclass
class Report:
    """report.json: each field of this class, and each of its properties, under its name.

    Those before `wall_seconds` are of the whole folder, whichever calls of the job made it; those from there
    on are of the last call that did something.
    """

    kind: str
    model: str | None
    output: str
    units: int
    inputs: int
    inputs_are: str
    failed_inputs: int  # that gave nothing at all
    clips: int  # rows: views of clips
    failures: int
    failures_by_reason: Mapping[str, int]
    output_bytes: int
    output_files: int
    frames: int = 0  # that decoders gave out, also those that no clip shows
    video_seconds: float = 0.0  # that clips cover, each moment once
    tube_bytes: int = 0  # of pixels that were cut, or read from shards
    decode_seconds: float = 0.0  # of workers' time, with what reading the inputs took
    decode_cpu_seconds: float = 0.0  # of that, what kept a core busy
    model_seconds: float = 0.0  # of workers' time
    wait_seconds: float = 0.0  # of the model's workers, for their input
    gpu_seconds: float = 0.0  # model_seconds, times the GPUs that a worker holds
    peak_memory_bytes: Mapping[str, int] = field(default_factory=dict)  # {stage: of its largest process}
    wall_seconds: float = 0.0  # from Ray's start to the manifest
    new_units: int = 0  # made by this call; the others were there already
    new_clips: int = 0
    new_video_seconds: float = 0.0
    workers: Mapping[str, int] = field(default_factory=dict)  # {stage: the most that had a unit at once}
    tail_seconds: float = 0.0  # from when the busiest stage last had all its workers busy, to the last unit
    notes: Sequence[str] = ()
    # {what: {"estimated", "actual", "ratio"}} of what a plan said; the wall time only if this call did it all
    estimate: Comparison | None = None
    format: int = FORMAT

    def add(self, receipts: Sequence[Receipt], new: Sequence[Receipt]) -> None:
        """Count the commit records of the folder, and those of them that this call has made."""
        for name in _SUMS:
            setattr(self, name, sum(getattr(receipt, name) for receipt in receipts))
        peaks: dict[str, int] = {}
        for work in (work for receipt in receipts for work in receipt.work):
            peaks[work.stage] = max(peaks.get(work.stage, 0), work.peak_memory_bytes)
        self.peak_memory_bytes = peaks
        self.new_units, self.new_clips = len(new), sum(receipt.clips for receipt in new)
        self.new_video_seconds = sum(receipt.video_seconds for receipt in new)
        timeline = Timeline.of(new)
        self.workers, self.tail_seconds = timeline.at_once(), timeline.tail_seconds()

    @property
    def clips_per_second(self) -> float:
        """Of this call."""
        return self.new_clips / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def video_hours_per_wall_hour(self) -> float:
        """Of this call: seconds of video that its clips cover, to a second of its wall time."""
        return self.new_video_seconds / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def frames_per_second_per_core(self) -> float | None:
        """Frames that decoders gave out to a second of their CPU time; None if nothing was decoded."""
        return self.frames / self.decode_cpu_seconds if self.decode_cpu_seconds else None

    @property
    def split(self) -> dict[str, float]:
        """How the workers' time is shared out: decoding, the model, the model's waiting for its input."""
        parts = {name: getattr(self, f"{name}_seconds") for name in ("decode", "model", "wait")}
        total = sum(parts.values())
        return {name: seconds / total if total else 0.0 for name, seconds in parts.items()}

    def values(self) -> dict[str, Any]:
        """What report.json says."""
        return {**asdict(self), **{name: getattr(self, name) for name in _PROPERTIES}}

    def write(self, place: Location) -> None:
        write_atomic(place / FILE, json.dumps(self.values(), indent=1).encode())

    def told(self, place: Location) -> bool:
        """Whether there is a report that says the same of the folder, and of a call that did something."""
        if self.new_units or not (place / FILE).exists():
            return False
        try:
            old = json.loads((place / FILE).read_bytes())
        except ValueError:
            return False
        mine = self.values()
        return isinstance(old, dict) and all(old.get(name) == mine[name] for name in ("format", *_OF_FOLDER))

    def table(self) -> Table:
        table = Table(show_header=False, title=f"{self.kind}: {self.model or 'shards'}", title_justify="left")
        for name, value in self._rows():
            table.add_row(name, Text(value))  # a path may well hold what looks like markup
        return table

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield self.inputs_are, f"{self.inputs:,}"
        new = "" if self.new_clips == self.clips else f" ({self.new_clips:,} new)"
        yield "clips", f"{self.clips:,}{new}"
        yield "failures", self._failures()
        speed = f"{self.clips_per_second:.2f} over {self.wall_seconds:.1f} s"
        yield "clips/s", speed if self.new_units else "nothing was left to do"
        if self.new_video_seconds:
            yield "video", f"{self.video_hours_per_wall_hour:.2f} hours an hour"
        if (frames := self.frames_per_second_per_core) is not None:
            yield "decode", f"{self.decode_seconds:.1f} s of workers' time, {frames:,.0f} frames/s a core"
        if self.kind != "shard":
            waited = f", and {self.wait_seconds:.1f} s of waiting"
            yield "model", f"{self.model_seconds:.1f} s of workers' time{waited}"
        if self.estimate:
            yield "estimate", "\n".join(self.hindsight())
        yield "output", f"{self.output} ({self.output_files} files, {self.output_bytes / 1e6:,.1f} MB)"

    def hindsight(self) -> Iterator[str]:
        """A line for each thing that was estimated: how much, and how much it came to."""
        for name, one in (self.estimate or {}).items():
            told = (
                duration if name.endswith("seconds") else size if name.endswith("bytes") else "{:,.0f}".format
            )
            came = "took" if name.endswith("seconds") else "came to"
            estimated, actual = told(one["estimated"]), told(one["actual"])
            yield f"{COMPARED[name]}: estimated {estimated}, {came} {actual} ({one['ratio']:.2f}x)"

    def _failures(self) -> str:
        if not self.failures:
            return "none"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.failures_by_reason.items())
        return f"{self.failures:,}, in {self.failed_inputs:,} of {self.inputs:,} inputs ({reasons})"


_SUMS = (
    "frames", "video_seconds", "tube_bytes", "decode_seconds", "decode_cpu_seconds", "model_seconds",
    "wait_seconds", "gpu_seconds",
)  # fmt: skip
_PROPERTIES = ("clips_per_second", "video_hours_per_wall_hour", "frames_per_second_per_core", "split")
_NAMES = [one.name for one in fields(Report)]
_OF_FOLDER = _NAMES[: _NAMES.index("wall_seconds")]


def measured(output: str, rows: Sequence[Mapping[str, float | int | str]]) -> Table:
    """What a training run came to: the last value of everything that it measured."""
    table = Table(show_header=False, title=f"train: {output}/model", title_justify="left")
    for name, value in {name: value for row in rows for name, value in row.items()}.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else f"{value:,}")
    return table


@dataclass
class FailureGroup:
    """Failures of one kind: which inputs, those of them that gave nothing at all, and some rows."""

    reason: str
    stage: str
    count: int = 0
    inputs: set[str] = field(default_factory=set)
    empty: set[str] = field(default_factory=set)
    examples: list[dict[str, Any]] = field(default_factory=list)


def grouped(failures: pa.Table, examples: int = 1) -> list[FailureGroup]:
    """Rows of `failures` by reason and stage, the most frequent first; each example is of another input."""
    groups: dict[tuple[str, str], FailureGroup] = {}
    for row in failures.to_pylist():
        kind = (row["reason"], row["stage"])
        group = groups.setdefault(kind, FailureGroup(*kind))
        group.count += 1
        if row["uri"] not in group.inputs and len(group.examples) < examples:
            group.examples.append(row)
        group.inputs.add(row["uri"])
        if not row["rows"]:
            group.empty.add(row["uri"])
    return sorted(groups.values(), key=lambda group: -group.count)


def failures_table(failures: pa.Table) -> Table:
    """By reason: inputs, rows that they gave all the same, an example."""
    table = Table(title="failures", title_justify="left")
    for column in ("reason", "stage"):
        table.add_column(column, no_wrap=True)
    for column in ("inputs", "of them empty"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("for example")
    for group in grouped(failures):
        (example,) = group.examples
        shown = Text(f"{example['uri']}: {example['message']}")
        table.add_row(group.reason, group.stage, f"{len(group.inputs):,}", f"{len(group.empty):,}", shown)
    return table
