"""What a job that decodes or embeds will come to: clips, bytes, work, time, and what is short of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from jobs import placement
from jobs.extent import Extent
from jobs.forecast import Figure, Forecast, total
from jobs.pace import Pace
from jobs.room import Room
from jobs.sample import Sample
from jobs.words import counted, duration, size
from pipeline.corpus import Media
from pipeline.pools import Pool

HOUR_SECONDS = 3600.0
WORK = {"decode": "decoding", "model": "the model", "driver": "handing out units"}
HELP = {
    "decode": "more cores for decoders help",
    "cpu": "a GPU helps, or more cores",
    "cuda": "more GPUs help",
    "driver": "larger units help (output.unit_bytes), or several jobs",
}


@dataclass
class Outlook:
    """What there is to do, and what it takes; what was not measured is None.

    clips: rows of output. seconds of decoding and of the model are those of all workers together.
    """

    job: str
    model: str | None
    output: str
    fingerprint: str
    extent: Extent
    tokens_per_view: Mapping[Media, int]
    bytes_per_view: Mapping[Media, int]
    room: Room
    pools: Sequence[Pool]
    clips: Figure
    samples: Mapping[Media, Sample] = field(default_factory=dict)
    pace: Pace | None = None
    output_bytes: Figure | None = None
    decode_seconds: Figure | None = None
    decode_cpu_seconds: Figure | None = None
    model_seconds: Figure | None = None
    model_cpu_seconds: Figure | None = None
    gpu_seconds: Figure | None = None
    wall_seconds: Figure | None = None
    forecast: Forecast | None = None
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        return bool(self.samples) or self.pace is not None

    @property
    def sampled(self) -> int:
        """Inputs."""
        return sum(len(sample.parts) for sample in self.samples.values())

    @property
    def failed(self) -> int:
        """Of them, those that gave nothing."""
        return sum(sample.failed for sample in self.samples.values())

    @property
    def reasons(self) -> Counter[str]:
        return sum((sample.reasons for sample in self.samples.values()), Counter[str]())

    @property
    def workers(self) -> dict[str, int]:
        return placement.workers(self.pools)

    @property
    def tube_bytes(self) -> int:
        """Of all views that are planned."""
        return sum(count * self.bytes_per_view[media] for media, count in self.extent.views.items())

    @property
    def object_store_bytes(self) -> int:
        """That units between two stages take at most (see pipeline.pools)."""
        if len(self.pools) < 2:
            return 0
        first, second = self.pools
        return (2 * first.actors + 3 * second.actors) * self.extent.largest_unit_bytes

    @property
    def cpu_seconds(self) -> Figure | None:
        """Of cores, by all stages."""
        found = [one for one in (self.decode_cpu_seconds, self.model_cpu_seconds) if one is not None]
        return total(found) if found else None

    def values(self) -> dict[str, Any]:
        """Plain numbers, for machines."""
        here = self.extent
        found: dict[str, Any] = {"job": self.job, "model": self.model, "output": self.output}
        found |= {"inputs": here.inputs, "left_out": dict(here.left_out), "planned_views": dict(here.views)}
        found |= {"tokens_per_view": self.tokens_per_view, "bytes_per_view": self.bytes_per_view}
        found |= {"headers_read": len(here.headers), "units": here.units, "tube_bytes": self.tube_bytes}
        found |= {"largest_unit_bytes": here.largest_unit_bytes}
        found |= {"workers": self.workers, "cores": self.room.cpus, "gpus": self.room.gpus}
        found |= {"sampled_inputs": self.sampled, "sampled_failed_inputs": self.failed}
        found |= {"sampled_failures_by_reason": dict(self.reasons), "clips": self.clips}
        names = "output_bytes decode_seconds decode_cpu_seconds model_seconds model_cpu_seconds cpu_seconds"
        found |= {name: getattr(self, name) for name in f"{names} gpu_seconds wall_seconds".split()}
        for name, value in list(found.items()):
            if isinstance(value, Figure):
                ends = {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
                whole = not name.endswith("seconds")
                found |= {k: round(v) if whole and v is not None else v for k, v in ends.items()}
        found |= {"bottleneck": self.forecast.bottleneck if self.forecast else None}
        found |= {"bounds_seconds": self.forecast.bounds_seconds if self.forecast else {}}
        found |= {"model_device": self.pace.device if self.pace else None}
        found |= {"peak_memory_bytes": self.peak_memory_bytes, "object_store_bytes": self.object_store_bytes}
        return {**found, "notes": self.notes}

    def table(self) -> Table:
        """For people: what there is to do, what it takes, how long, and with what."""
        title = f"{self.job}: {self.model or 'shards'} -> {self.output}"
        table = Table(show_header=False, title=Text(title), title_justify="left")
        for rows in (self._extent(), self._work(), self._means()):
            for name, value in rows:
                table.add_row(name, Text(value))
            table.add_section()
        return table

    def _extent(self) -> Iterator[tuple[str, str]]:
        here = self.extent
        left_out = ", ".join(f"{n:,} {suffix}" for suffix, n in sorted(here.left_out.items()))
        yield "inputs", f"{here.inputs:,}" + (f"; left out: {left_out}" if left_out else "")
        for media, count in here.views.items():
            each = f"{self.tokens_per_view[media]:,} tokens and {size(self.bytes_per_view[media])} each"
            about = (
                f"by {counted(len(here.headers), 'header')} about "
                if here.headers and media == "video"
                else ""
            )
            yield (
                f"{media} views",
                f"{about}{count:,}, {each}; {size(count * self.bytes_per_view[media])} in all",
            )
        yield "units of work", f"{here.units:,}, of {size(here.largest_unit_bytes)} at most"

    def _work(self) -> Iterator[tuple[str, str]]:
        """What a sample tells."""
        if not self.measured:
            yield "measured", "nothing: clips, work and time are not known"
            return
        if self.samples:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
            sampled = counted(self.sampled, "sampled input")
            failing = f"{self.failed} of {sampled} fail ({reasons})"
            yield "sample", failing if self.failed else f"none of {sampled} fails"
        yield "clips", _about(self.clips, lambda value: f"{value:,.0f}")
        if self.output_bytes is not None:
            yield "output", _about(self.output_bytes, size)
        if self.decode_cpu_seconds is not None:
            yield "decoding", f"{_about(self.decode_cpu_seconds, duration)} of cores"
        if self.pace is not None and self.model_seconds is not None:
            what = "GPU" if self.pace.device == "cuda" else "CPU"
            yield "the model", f"{_about(self.model_seconds, duration)} of workers' time, on a {what}"
        if self.cpu_seconds is not None:
            yield "CPU-hours", _hours(self.cpu_seconds.value)
        if self.gpu_seconds is not None:
            yield "GPU-hours", _hours(self.gpu_seconds.value)

    def _means(self) -> Iterator[tuple[str, str]]:
        """With which workers, and so how long."""
        for pool in self.pools:
            name = pool.stage.__name__.lower()
            held = ((pool.cpus, "core"), (pool.gpus, "GPU"))
            each = " and ".join(f"{n:g} {what}{'' if n == 1 else 's'}" for n, what in held if n)
            peak = self.peak_memory_bytes.get(name)
            memory = f", {size(peak)} of memory" if peak else ""
            yield f"{name} workers", f"{pool.actors:,}, for each {each}{memory}"
        if self.object_store_bytes:
            yield "object store", f"{size(self.object_store_bytes)} at most"
        if self.wall_seconds is not None:
            yield "wall time", f"about {_about(self.wall_seconds, duration)}"
            yield "bottleneck", self._bottleneck()
        elif self.decode_seconds is not None:
            at_least = self.decode_seconds.value / self.pools[0].actors
            rate = self.clips.value / at_least / self.pools[-1].actors if at_least else 0.0
            yield "wall time", f"at least {duration(at_least)}, for decoding"
            yield "bottleneck", f"the model, if a worker of it does less than {rate:,.3g} clips/s"

    def _bottleneck(self) -> str:
        assert self.forecast is not None
        slowest, bounds = self.forecast.bottleneck, self.forecast.bounds_seconds
        if slowest is None:
            return "none: there is nothing to do"
        help_ = HELP[self.pace.device if slowest == "model" and self.pace is not None else slowest]
        if self.forecast.cores_decide:
            mine = self.decode_cpu_seconds if slowest == "decode" else self.model_cpu_seconds
            assert mine is not None
            assert self.cpu_seconds is not None
            share = f"{mine.value:,.3g} of {self.cpu_seconds.value:,.3g} core-seconds"
            cores = counted(round(self.room.cpus), "core")
            return f"{WORK[slowest]} ({share}, on {cores} that all share); {help_}"
        stages = [name for name in ("decode", "model") if name in bounds and name != slowest]
        others = [f"{WORK[name]} {duration(bounds[name])}" for name in stages]
        beside = f", {' and '.join(others)}" if others else ""
        return f"{WORK[slowest]} ({duration(bounds[slowest])} with these workers{beside}); {help_}"


def _hours(seconds: float) -> str:
    hours = seconds / HOUR_SECONDS
    return f"{hours:,.{1 if hours >= 10 else 2 if hours >= 0.1 else 4}f}"


def _about(figure: Figure, words: Callable[[float], str]) -> str:
    """A value, and what it lies between."""
    if figure.low is None or figure.high is None:
        return f"{words(figure.value)}, by a single input"
    low, value, high = map(words, (figure.low, figure.value, figure.high))
    return value if low == high else f"{value} ({low} to {high})"
