"""What workers tell Prometheus of their units, by way of Ray; jobs/specs/grafana.json is a dashboard of it.

Ray exports a counter x as ray_x_total, a gauge as ray_x, a histogram as ray_x_bucket, ray_x_sum, ray_x_count,
of which the sum is that of the buckets' middles, so what must be exact is counted.
A unit that is done again, because its worker died, counts again: what a run came to is in its report.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from pipeline.commits import Receipt, Run, Work
from pipeline.errors import Failure

# {name: what it counts}: all by job, the path of its output, and by stage; failures by reason, too.
TAGS = ("job", "stage")
COUNTERS = {
    "tubelet_units": "Units that a stage has done",
    "tubelet_frames": "Frames that decoders gave out",
    "tubelet_decode_seconds": "Workers' time in decoding",
    "tubelet_decode_cpu_seconds": "CPU time in decoding",
    "tubelet_clips": "Rows committed: views of clips",
    "tubelet_video_seconds": "Seconds of video that committed clips cover",
    "tubelet_bytes": "Bytes of tubes that committed units hold",
    "tubelet_model_seconds": "Workers' time in the model",
    "tubelet_wait_seconds": "Time of the model's workers without input",
    "tubelet_batch_views": "Views in batches of the model",
    "tubelet_batch_room": "Views that those batches could have held",
    "tubelet_failures": "Rows of failures",
}
GAUGES = {"tubelet_peak_memory_bytes": "The most memory that a worker had so far"}
HISTOGRAMS = {
    "tubelet_unit_seconds": ("How long a worker had a unit", [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]),
}


class Metrics:
    """A worker's; `stage` is its own."""

    def __init__(self, run: Run, stage: str):
        self._counters = {
            name: Counter(name, text, (*TAGS, "reason") if name == "tubelet_failures" else TAGS)
            for name, text in COUNTERS.items()
        }
        self._gauges = {name: Gauge(name, text, TAGS) for name, text in GAUGES.items()}
        self._histograms = {
            name: Histogram(name, text, bounds, TAGS) for name, (text, bounds) in HISTOGRAMS.items()
        }
        self._tags = {"job": run.place.path, "stage": stage}

    def _count(self, name: str, value: float) -> None:
        if value > 0:  # Ray refuses nothing
            self._counters[f"tubelet_{name}"].inc(value, self._tags)

    def decoded(self, receipt: Receipt) -> None:
        """A unit whose inputs have been decoded here."""
        for name in ("frames", "decode_seconds", "decode_cpu_seconds"):
            self._count(name, getattr(receipt, name))

    def worked(self, work: Work) -> None:
        """A unit is done, as far as this stage goes."""
        self._count("units", 1)
        self._gauges["tubelet_peak_memory_bytes"].set(work.peak_memory_bytes, self._tags)
        self._histograms["tubelet_unit_seconds"].observe(work.ended_at - work.begun_at, self._tags)

    def batch(self, views: int, room: int) -> None:
        """A batch of the model."""
        self._count("batch_views", views)
        self._count("batch_room", room)

    def committed(self, receipt: Receipt, failures: Sequence[Failure]) -> None:
        """A unit that exists from now on."""
        for name in ("clips", "video_seconds", "model_seconds", "wait_seconds"):
            self._count(name, getattr(receipt, name))
        self._count("bytes", receipt.tube_bytes)
        for failure in failures:
            tags = {**self._tags, "stage": failure.stage, "reason": failure.reason}
            self._counters["tubelet_failures"].inc(1, tags)
