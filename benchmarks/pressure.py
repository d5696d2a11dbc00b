"""What waits when the model is slow, and how long the tail is when videos are unequal.

    python -m benchmarks.pressure [--units 24] [--minutes 30]

The first table is an embed job whose model takes half a second a unit, while two decoders could do more: what
lies in the object store, what is spilled, and what processes hold, for a corpus and one four times as large,
with this project's bound and with Ray's own settings. The second is a shard job on one long video among short
ones: for how long of the run a decoder has nothing to do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from rich.console import Console
from rich.text import Text

from benchmarks.media import RATE, many, repeated
from jobs import embed
from jobs.cluster import connected
from jobs.progress import Progress
from jobs.runner import run_job
from jobs.spec import load
from pipeline import pools
from pipeline.commits import Receipt

UNIT_BYTES = 8 << 20
SLOW_SECONDS = 0.5
DECODERS = 2


class SlowEmbed(embed.Embed):
    """The embed stage, slowed down."""

    def __call__(self, units: pa.Table) -> pa.Table:
        time.sleep(SLOW_SECONDS)
        return super().__call__(units)


@dataclass
class Pressure(Progress):
    """Looks at Ray's store and processes each time a unit is committed."""

    store_bytes: int = 0  # the most that was seen, as for the next two
    spilled_bytes: int = 0
    driver_bytes: int = 0
    worker_bytes: dict[str, int] = field(default_factory=dict)  # {stage: of one worker, shared memory apart}

    def __post_init__(self) -> None:
        super().__init__(Console(quiet=True))
        self._state = get_state_from_address(ray.get_runtime_context().gcs_address)

    def advance(self, receipt: Receipt) -> None:
        super().advance(receipt)
        stats = get_memory_info_reply(self._state).store_stats
        self.store_bytes = max(self.store_bytes, stats.object_store_bytes_used)
        self.spilled_bytes = max(self.spilled_bytes, stats.spilled_bytes_total)
        self.driver_bytes = max(self.driver_bytes, psutil.Process().memory_full_info().uss)
        for process in psutil.Process().children(recursive=True):
            try:
                name, used = process.name(), process.memory_full_info().uss
            except psutil.Error:
                continue
            stage = next(
                (stage for stage in ("Decode", "Embed") if f"({stage}" in name or stage in name), None
            )
            if stage is not None:
                self.worker_bytes[stage] = max(self.worker_bytes.get(stage, 0), used)


@contextmanager
def slow_model(bounded: bool) -> Iterator[None]:
    """Jobs in here have a slow model; and, if not `bounded`, what Ray itself does about it."""
    quick, policy = embed.Embed, pools._Room
    embed.Embed = SlowEmbed
    if not bounded:
        pools._Room = Unbounded
    try:
        yield
    finally:
        embed.Embed, pools._Room = quick, policy


class Unbounded(pools._Room):
    """Of this project's policy only what keeps the plan out of the driver."""

    def can_add_input(self, operator: Any) -> bool:
        return True


def make_videos(folder: Path, count: int, seconds: float = 1.0, name: str = "short") -> Path:
    """So many small videos: one, and links to it."""
    numbers = np.arange(round(seconds * RATE))
    pictures = np.empty((len(numbers), 48, 64, 3), np.uint8)
    pictures[:] = (numbers % 256)[:, None, None, None]
    pictures[numbers, :, numbers % 64] = 255
    return many(folder, f"{name}-", count, pictures, {"g": "25"})


def embed_spec(corpus: Path, output: Path) -> dict[str, Any]:
    return {
        "version": 1, "kind": "embed", "input": {"path": str(corpus)},
        "sampling": {"frames": 20, "stride": 1, "clips": 4, "crops": 3, "height_px": 160, "width_px": 160},
        "model": {"name": "tubevit-tiny"}, "output": {"path": str(output), "unit_bytes": UNIT_BYTES},
        "resources": {"decode": {"actors": DECODERS, "cpus": 0.5}, "embed": {"actors": 1, "cpus": 0.5}},
    }  # fmt: skip


def pressure(folder: Path, units: int, bounded: bool) -> tuple[Pressure, int]:
    """(what was seen, units) of an embed job with a slow model on a corpus of about so many units."""
    spec = load(embed_spec(folder / f"corpus-{units}", folder / f"out-{units}-{bounded}"))
    per_video = spec.model.plans(spec.sampling)["video"].bytes_per_clip * 12
    if not (folder / f"corpus-{units}").exists():
        make_videos(folder / f"corpus-{units}", units * (UNIT_BYTES // per_video))
    with slow_model(bounded):
        seen = Pressure()
        report = run_job(spec, seen)
    return seen, report.units


@dataclass
class Tail(Progress):
    """When each unit was worked on."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(Console(quiet=True))

    def advance(self, receipt: Receipt) -> None:
        super().advance(receipt)
        now = time.monotonic()
        self.spans.append((now - receipt.decode_seconds, now))

    @property
    def seconds(self) -> float:
        """From the first unit's begin to the last one's end."""
        return max(end for _, end in self.spans) - min(begin for begin, _ in self.spans)

    @property
    def tail_seconds(self) -> float:
        """At the end, while fewer than all decoders had something to do."""
        ends = sorted(end for _, end in self.spans)
        all_busy = [
            time for time in ends[:-1] if sum(begin < time <= end for begin, end in self.spans) >= DECODERS
        ]
        return ends[-1] - max(all_busy, default=ends[0])

    @property
    def idle_share(self) -> float:
        return 1 - sum(end - begin for begin, end in self.spans) / (DECODERS * self.seconds)


def tail(folder: Path, minutes: int, name: str) -> tuple[Tail, int]:
    """(what was seen, units) of a shard job on a video of so many minutes, `name`, among 120 of 1 s."""
    corpus = folder / f"unequal-{name}"
    make_videos(corpus, 120)
    minute = make_videos(folder / f"minute-{name}", 1, 60, name)
    repeated(minute, minutes, "mp4").rename(corpus / f"{name}.mp4")
    spec = load(
        {
            "version": 1, "kind": "shard", "input": {"path": str(corpus)},
            "models": [{"name": "tubevit-tiny"}],
            "sampling": {"frames": 20, "stride": 1, "every_seconds": 1, "height_px": 160, "width_px": 160},
            "output": {"path": str(folder / f"shards-{name}")},
            "resources": {"decode": {"actors": DECODERS, "cpus": 0.5}},
        }
    )  # fmt: skip
    seen = Tail()
    return seen, run_job(spec, seen).units


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--minutes", type=int, default=30)
    asked = parser.parse_args()
    lines = [
        "| back-pressure | units | store, MB | in units | spilled | driver, MB | decoder, MB | model, MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for bounded in (True, False):
            for factor in (1, 4):
                with connected(None):  # a fresh store each
                    seen, units = pressure(folder, asked.units * factor, bounded)
                numbers = [
                    f"{units}", f"{seen.store_bytes / 1e6:.0f}", f"{seen.store_bytes / UNIT_BYTES:.1f}",
                    f"{seen.spilled_bytes / 1e6:.0f}", f"{seen.driver_bytes / 1e6:.0f}",
                    *(f"{seen.worker_bytes.get(stage, 0) / 1e6:.0f}" for stage in ("Decode", "Embed")),
                ]  # fmt: skip
                lines.append(f"| {'by units' if bounded else 'Ray alone'} | {' | '.join(numbers)} |")
        lines += [
            "", "| a long video among 120 of 1 s | units | seconds | tail, s | idle share |",
            "|---|---:|---:|---:|---:|",
        ]  # fmt: skip
        with connected(None):
            for name in ("a-first", "z-last"):
                after, units = tail(folder, asked.minutes, name)
                numbers = [
                    f"{units}",
                    f"{after.seconds:.1f}",
                    f"{after.tail_seconds:.1f}",
                    f"{after.idle_share:.2f}",
                ]
                lines.append(f"| {asked.minutes} minutes, {name[2:]} | {' | '.join(numbers)} |")
    Console().print(Text("\n".join(lines)), soft_wrap=True)


if __name__ == "__main__":
    main()
