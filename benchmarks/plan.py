"""What the driver needs to plan large corpora, and to run them: CPU seconds and peak memory over corpus size.

    python -m benchmarks.plan [--largest 10000000] [--units 4000]

Planning: a Parquet list of so many videos (none of which exist: a plan reads no video) is frozen by the code
of `tubelet run`, each size in a process of its own. A folder: the same for files that do exist, empty ones.
Running: jobs of so many units whose inputs are missing, so that nothing but the driver's own work is left.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

NAME = "archive/2026/{a:03d}/{b:03d}/camera-{c:04d}/recording-{n:010d}.mp4"
CHUNK = 1 << 16


def write_list(path: Path, inputs: int) -> None:
    """A list of uris of 57 characters, with labels."""
    schema = pa.schema([("uri", pa.string()), ("label", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, inputs, CHUNK):
            some = range(start, min(inputs, start + CHUNK))
            uris = [NAME.format(a=n % 997, b=n % 991, c=n % 9973, n=n) for n in some]
            writer.write_table(pa.table({"uri": uris, "label": [f"class {n % 400}" for n in some]}))


def spec_of(source: Path, output: Path) -> dict[str, Any]:
    return {
        "version": 1, "kind": "shard", "input": {"path": str(source)}, "models": [{"name": "tubevit-b16"}],
        "output": {"path": str(output)},
    }  # fmt: skip


def freeze(source: Path, output: Path) -> None:
    """In a process of its own: freeze, then write what is pending; prints what it took."""
    from jobs import frozen
    from jobs.spec import load
    from pipeline import generations
    from pipeline.commits import Run

    spec = load(spec_of(source, output))
    run = Run(spec.output.path, frozen.fingerprint(spec))
    before = psutil.Process().memory_info().rss
    begun = time.process_time()
    plan = frozen.freeze(run, spec, frozen.list_source(spec), lambda root, inputs: [])
    frozen_seconds = time.process_time() - begun
    generations.write_pending(run, plan.generations, ())
    seconds = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = (output / f"{plan.generations[0].name}.parquet").stat().st_size
    print(json.dumps([plan.inputs, plan.units, frozen_seconds, seconds, (peak - before) / 1e6, size / 1e6]))


def extend(source: Path, output: Path) -> None:
    """In a process of its own: list again what is frozen already; prints what it took."""
    from jobs import again, frozen
    from jobs.spec import load
    from pipeline.commits import Run

    spec = load(spec_of(source, output))
    run = Run(spec.output.path, frozen.fingerprint(spec))
    plan = frozen.read(run, spec)
    assert plan is not None
    before = psutil.Process().memory_info().rss
    begun = time.process_time()
    assert again.extend(run, spec, plan, frozen.list_source(spec), lambda root, inputs: []) == (0, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([time.process_time() - begun, (peak - before) / 1e6]))


def apart(function: str, *paths: Path) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.plan", "--alone", function, *map(str, paths)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def planning(folder: Path, largest: int) -> None:
    print("\n| input | inputs | units | CPU s | and written for Ray | peak over start, MB | plan, MB |"
          " `--extend`, CPU s | MB |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    sizes = [size for size in (10_000, 100_000, 1_000_000, 10_000_000) if size < largest] + [largest]
    for size in sizes:
        path, output = folder / "list.parquet", folder / f"run-{size}"
        write_list(path, size)
        row("list", apart("freeze", path, output), apart("extend", path, output))
        shutil.rmtree(output)
    for size in (10_000, 100_000):
        for n in range(size):
            path = folder / "files" / NAME.format(a=n % 97, b=n % 7, c=0, n=n)
            if n < 97 * 7:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        output = folder / f"files-{size}"
        row("folder", apart("freeze", folder / "files", output), apart("extend", folder / "files", output))


def row(what: str, frozen: list[float], extended: list[float]) -> None:
    inputs, units, seconds, written, peak, size = frozen
    cells = (f"{inputs:,}", f"{units:,}", f"{seconds:.1f}", f"{written:.1f}", f"{peak:.0f}", f"{size:.1f}")
    print(f"| {what} | {' | '.join(cells)} | {extended[0]:.1f} | {extended[1]:.0f} |", flush=True)


def running(folder: Path, most_units: int) -> None:
    """Jobs whose inputs are all missing: a failure row each, and no pixel."""
    import jobs
    from jobs.cluster import connected

    print("\n| units | inputs | seconds | ms a unit | driver's memory at the start, MB | peak | at the end |"
          "\n|---:|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    with connected(None):
        for units in (most_units // 16, most_units // 4, most_units):
            write_list(folder / "few.parquet", units)
            spec = spec_of(folder / "few.parquet", folder / f"units-{units}")
            spec["output"]["unit_bytes"] = 1
            with Watch() as watch:
                begun = time.perf_counter()
                report = jobs.run(spec)
                seconds = time.perf_counter() - begun
            assert report.failed_inputs == report.units == units
            memory = f"{watch.first:.0f} | {watch.peak:.0f} | {watch.last:.0f}"
            print(
                f"| {units:,} | {report.inputs:,} | {seconds:.0f} | {seconds / units * 1e3:.1f} | {memory} |",
                flush=True,
            )


class Watch:
    """This process' memory in MB while the context lasts."""

    def __enter__(self) -> Watch:
        self.first = self.peak = self.last = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self.last = self._now()
            self.peak = max(self.peak, self.last)

    def _now(self) -> float:
        return psutil.Process().memory_info().rss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=10_000_000)
    parser.add_argument("--units", type=int, default=4_000)
    parser.add_argument("--alone", nargs=3, metavar=("WHAT", "INPUT", "OUTPUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        what, *paths = asked.alone
        {"freeze": freeze, "extend": extend}[what](*map(Path, paths))
        return
    with tempfile.TemporaryDirectory() as folder:
        planning(Path(folder), asked.largest)
        running(Path(folder), asked.units)


if __name__ == "__main__":
    main()
