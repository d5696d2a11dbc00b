"""Reading files, and running jobs, that may do anything: in processes that are watched, and outlived."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

import models
from pipeline.errors import MediaError
from pipeline.sampling import Sampling
from pipeline.storage import locate
from pipeline.tables import IMAGE_SUFFIXES
from pipeline.video import Lost, read_clips

ROOT = Path(__file__).parent.parent
SAMPLING = {"frames": 20, "stride": 2, "clips": 2, "height_px": 64, "width_px": 64}
STILL = {**SAMPLING, "frames": 1, "stride": 1, "clips": 1}
MODEL = "tubevit-tiny"
JOB = "import json, sys, jobs; jobs.run(json.loads(sys.argv[1]))"
READ_SECONDS = 60.0  # a file that is read alone for longer than this hangs


# --- each file alone ----------------------------------------------------------------------------------------


@dataclass
class Alone:
    """What reading one file gave. `trouble`: a crash, a hang, or an exception that is not ours."""

    name: str
    views: int = 0
    lost: int = 0
    reason: str | None = None
    seconds: float = 0.0
    peak_bytes: int = 0
    trouble: str | None = None
    stack: str = field(default="", repr=False)


def read_one(folder: Path, name: str) -> Alone:
    plan = models.plan(MODEL, frames=SAMPLING["frames"], size=(SAMPLING["height_px"], SAMPLING["width_px"]))
    is_image = Path(name).suffix in IMAGE_SUFFIXES
    plan, sampling = (plan.image(), Sampling(**STILL)) if is_image else (plan, Sampling(**SAMPLING))
    assert plan is not None
    result, begun = Alone(name), time.perf_counter()
    _forget_peak()
    try:
        for view in read_clips(locate(str(folder / name)), sampling, plan):
            result.lost += isinstance(view, Lost)
            result.views += not isinstance(view, Lost)
    except MediaError as error:
        result.reason = error.reason
    except Exception as error:
        result.trouble, result.stack = f"{type(error).__name__}: {error}", traceback.format_exc()
    result.seconds, result.peak_bytes = time.perf_counter() - begun, peak_bytes(os.getpid())
    return result


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """The most memory a process has had resident; what it has now where the kernel does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def _reader(folder: Path, todo: list[str], pipe: Connection, stacks: Path) -> None:
    with stacks.open("w") as file:
        faulthandler.enable(file)
        faulthandler.register(signal.SIGUSR1, file)
        pipe.send(None)
        for name in todo:
            pipe.send(read_one(folder, name))


def read_alone(folder: Path, todo: list[str], stacks: Path) -> Iterator[Alone]:
    """Read files one by one in another process; one that it dies of, or waits for, is named, and left out."""
    context = multiprocessing.get_context("spawn")
    while todo:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_reader, args=(folder, todo, theirs, stacks))
        process.start()
        theirs.close()
        ours.recv()  # it is there; a process that cannot even begin ends this one
        try:
            while todo and ours.poll(READ_SECONDS):
                yield ours.recv()
                todo = todo[1:]
            trouble = f"hung: no result after {READ_SECONDS:g} s"
            if todo:
                os.kill(process.pid or 0, signal.SIGUSR1)
                time.sleep(1)
        except EOFError:
            process.join()
            trouble = f"crashed: exit code {process.exitcode}"
        if todo:
            process.kill()
            yield Alone(todo[0], trouble=trouble, stack=stacks.read_text())
            todo = todo[1:]
        process.join()
        ours.close()


# --- the job ------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """How a job went, seen from outside: it runs in a process group of its own, for a limited time."""

    exit_code: int | None = None
    seconds: float = 0.0
    bound_seconds: float = 0.0
    peak_bytes: int = 0
    deaths: dict[str, int] = field(default_factory=dict)  # by input
    begun_again: int = 0  # units whose worker died


def run_job(folder: Path, output: Path, bound_seconds: float, log: Path) -> Job:
    spec = {
        "version": 1, "kind": "shard", "input": {"path": str(folder)}, "sampling": SAMPLING,
        "models": [{"name": MODEL}], "output": {"path": str(output)},
    }  # fmt: skip
    job, begun = Job(bound_seconds=bound_seconds), time.monotonic()
    family: dict[int, psutil.Process] = {}
    attempts: dict[str, dict[str, Any]] = {}
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    ray_folder = tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True)
    with ray_folder as ray, log.open("w") as said:
        environment.setdefault("RAY_TMPDIR", ray)
        process = subprocess.Popen(
            [sys.executable, "-c", JOB, json.dumps(spec)],
            cwd=ROOT, env=environment, start_new_session=True, stdout=said, stderr=said,
        )  # fmt: skip
        try:
            while process.poll() is None and time.monotonic() - begun < bound_seconds:
                job.peak_bytes = max(job.peak_bytes, *map(peak_bytes, _decoders(process.pid, family)), 0)
                attempts |= _attempts(output)
                time.sleep(0.1)
            job.exit_code, job.seconds = process.poll(), time.monotonic() - begun
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for one in family.values():
                with contextlib.suppress(psutil.Error):
                    one.kill()  # checks that the process id is still the same process
            psutil.wait_procs(family.values(), timeout=10)
    job.begun_again = sum(noted["starts"] > 1 for noted in attempts.values())
    planned = read_table(output / "plan" / "00000.parquet", ["unit", "items"])
    units = {row["unit"]: row["items"] for row in planned}
    for name, noted in attempts.items():
        items = units[int(name.partition("-")[0])]
        job.deaths |= {items[int(at)]["uri"]: count for at, count in noted["deaths"].items()}
    return job


def _decoders(pid: int, family: dict[int, psutil.Process]) -> list[int]:
    """Ray's workers below a process, and theirs; adds all its descendants to `family`."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            family[process.pid] = process
            with contextlib.suppress(psutil.Error, IndexError):
                if process.cmdline()[0].startswith("ray::"):
                    found += [process.pid, *(child.pid for child in process.children(recursive=True))]
    return found


def _attempts(output: Path) -> dict[str, dict[str, Any]]:
    noted = {}
    for path in (output / "attempts").glob("[0-9]*.json"):
        with contextlib.suppress(OSError, json.JSONDecodeError):
            noted[path.name] = json.loads(path.read_bytes())
    return noted


def read_table(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    return pq.read_table(path, columns=columns).to_pylist() if path.exists() else []
