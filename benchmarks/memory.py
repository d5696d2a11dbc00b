"""Memory and CPU time of `read_clips` over a long file, part by part as a job reads it."""

from __future__ import annotations

import multiprocessing
import re
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

EVERY_SECONDS = 10
WINDOWS_A_PART = 40


@dataclass(frozen=True)
class Footprint:
    """Of one file, read in a process of its own: peak memory above what it was before, CPU seconds a part."""

    clips: int
    peak_mb: float
    first_clips: tuple[int, ...]  # of each part
    cpu_seconds: tuple[float, ...]


def footprint(path: Path, first_clips: list[int]) -> Footprint:
    """Read the parts that begin with these clips, one after the other."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe(duplex=False)
    process = context.Process(target=_read, args=(str(path), first_clips, other))
    process.start()
    other.close()
    result = pipe.recv()
    process.join()
    return result


def _read(path: str, first_clips: list[int], pipe: Connection) -> None:
    from benchmarks.readers import FRAMES, SIZE, STRIDE, plan_of
    from pipeline.sampling import Sampling
    from pipeline.storage import locate
    from pipeline.video import Pixels, read_clips

    plan, place = plan_of("tubevit-b16"), locate(path)
    sampling = Sampling(
        frames=FRAMES, stride=STRIDE, every_seconds=EVERY_SECONDS, height_px=SIZE, width_px=SIZE
    )
    before = status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    seconds, clips = [], 0
    for first in first_clips:
        begun = time.process_time()
        for view in read_clips(place, sampling, plan, window=(first, first + WINDOWS_A_PART)):
            assert isinstance(view, Pixels), view
            clips += 1
        seconds.append(time.process_time() - begun)
    pipe.send(Footprint(clips, status_mb("VmHWM") - before, tuple(first_clips), tuple(seconds)))


def status_mb(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
