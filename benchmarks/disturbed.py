"""A job of the real command line while something is done to it; what is left, compared with a quiet run."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Location, locate
from pipeline.verify import verify

ROOT = Path(__file__).parent.parent
SAMPLING = {"frames": 20, "stride": 1, "clips": 2, "height_px": 64, "width_px": 96}
MODEL = {"name": "tubevit-tiny"}
HUNG_SECONDS = 600.0  # a command that takes longer hangs; alone on a machine they take 15 to 30, or 60 by S3
# After a driver's death, until everything that it started must be gone. Workers go within seconds; two idle
# agents of Ray's first look for its control service for 60 s.
GONE_SECONDS = 80.0
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
RERUNS = 3


@dataclass
class Outcome:
    """What some rounds of an event came to; all counts should be 0."""

    lost: int = 0  # rows of the quiet run that are not there
    doubled: int = 0  # rows that are there more than once
    torn: int = 0  # rows that differ, temporary files left, and whatever else `tubelet verify` objects to
    hung: int = 0  # commands that did not end in HUNG_SECONDS
    wrong: list[str] = field(default_factory=list)  # what else should not have happened
    notes: list[str] = field(default_factory=list)  # what happened, and may
    skipped: str = ""  # why this machine cannot do it

    @property
    def well(self) -> bool:
        return not (self.lost or self.doubled or self.torn or self.hung or self.wrong)

    def add(self, other: Outcome) -> None:
        self.lost += other.lost
        self.doubled += other.doubled
        self.torn += other.torn
        self.hung += other.hung
        self.wrong += other.wrong
        self.notes += other.notes


@dataclass
class Job:
    """A job of one spec, in a folder of its own. Where it reads and writes may be elsewhere."""

    kind: str
    folder: Path
    input: str
    output: str
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()  # a command that runs another one

    def spec(self) -> dict[str, Any]:
        model = {"model": {**MODEL, "batch_views": 4}} if self.kind == "embed" else {"models": [MODEL]}
        output = {"path": self.output, "unit_bytes": 1}  # a unit a clip
        given = {"version": 1, "kind": self.kind, "input": {"path": self.input}, "sampling": SAMPLING}
        return {**given, **model, "output": output}

    def start(self) -> Command:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "spec.json").write_text(json.dumps(self.spec()))
        return Command(self)

    def committed(self) -> int:
        """Units that have a commit record."""
        return sum(info.base_name.endswith(".json") for info in (locate(self.output) / "commits").files())

    def to_the_end(self, outcome: Outcome) -> None:
        """The same command again until it succeeds."""
        for _ in range(RERUNS):
            if self.start().finish(outcome) == 0:
                return
        outcome.wrong.append(f"not done after {RERUNS} reruns")


class Command:
    """`python -m jobs run spec.json`, in a session and a process group of its own."""

    def __init__(self, job: Job):
        self.job, self._begun = job, time.monotonic()
        # Sockets lie in Ray's folder, and their paths must be short.
        self._ray = Path(tempfile.mkdtemp(prefix="fault-", dir="/tmp"))
        self._log = job.folder / f"{self._ray.name}.txt"
        own = {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(self._ray), "TMPDIR": str(self._ray)}
        environment = {**os.environ, **own, **job.environment}
        environment.pop("RAY_ADDRESS", None)
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*job.prefix, sys.executable, "-m", "jobs", "run", str(job.folder / "spec.json")],
                cwd=ROOT, env=environment, start_new_session=True, stdout=log, stderr=log,
            )  # fmt: skip
        atexit.register(self._end)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def over(self) -> bool:
        """Ended, or hung."""
        return self.ended or time.monotonic() - self._begun > HUNG_SECONDS

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """The driver and everything that it started and that still runs."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getsid(pid) == self.process.pid:
                    process = psutil.Process(pid)
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found

    def workers(self, stage: str) -> list[psutil.Process]:
        """Ray's processes that do a stage."""
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error, IndexError):
                if process.cmdline()[0].startswith(f"ray::MapWorker(MapBatches({stage}))"):
                    found.append(process)
        return found

    def reach(self, units: int) -> bool:
        """Wait until so many units are committed; False: it ended before, or takes too long."""
        while self.job.committed() < units:
            if self.over:
                return False
            time.sleep(0.5 if "://" in self.job.output else 0.02)
        return not self.ended

    def finish(self, outcome: Outcome, *, agents_may_stay: bool = False) -> int | None:
        """Wait for its end, and for that of its processes; returns the exit code, None if it hung.

        agents_may_stay: those two, which count their 60 s by the time of day, need not have gone.
        """
        try:
            code = self.process.wait(max(0.1, self._begun + HUNG_SECONDS - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
            outcome.hung += 1
        else:
            deadline = time.monotonic() + GONE_SECONDS
            while (left := self._left(agents_may_stay)) and time.monotonic() < deadline:
                time.sleep(0.1)
            if left:
                names = Counter(_name(process) for process in left)
                outcome.wrong.append(f"processes left after {GONE_SECONDS:g} s: {dict(names)}")
        self._end()
        atexit.unregister(self._end)
        return code

    def _left(self, agents_may_stay: bool) -> list[psutil.Process]:
        return [process for process in self.family() if not (agents_may_stay and _name(process) in AGENTS)]

    def _end(self) -> None:
        """Leave nothing of it behind."""
        while left := self.family():
            send(left, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.1)
        shutil.rmtree(self._ray, ignore_errors=True)

    def fails_clearly(self, outcome: Outcome, *words: str) -> None:
        """It must end with exit code 1 or 2 and one line that holds the words, and without a traceback."""
        code, said = self.finish(outcome), self.said()
        lines = [line for line in said.splitlines() if all(word in line for word in words)]
        if code not in (1, 2) or "Traceback" in said or len(lines) != 1:
            end = " / ".join(said.strip().splitlines()[-4:])
            outcome.wrong.append(f"no clear error: exit code {code}, {end}")
        else:
            outcome.notes.append(f"exit code {code}: {lines[0]}")


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error, IndexError):
        return Path(process.cmdline()[0].split()[0]).name
    return "?"


@dataclass
class Bench:
    """Where rounds are run: a corpus, and what quiet runs made of it."""

    folder: Path
    copies: int = 2
    _quiet: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def corpus(self) -> Path:
        corpus = self.folder / "corpus"
        if not corpus.exists():
            self.copy_corpus(corpus)
        return corpus

    def copy_corpus(self, folder: Path) -> Path:
        """The generated clips, some times over: two clips of each video are two units."""
        folder.mkdir(parents=True)
        for path in sorted((ROOT / "tests" / "resources").iterdir()):
            for copy in range(self.copies if path.suffix != ".py" else 0):
                shutil.copy(path, folder / f"{path.stem}_{copy}{path.suffix}")
        return folder

    def job(self, kind: str, **where: Any) -> Job:
        """A new job on the corpus, in a new folder."""
        folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.folder))
        return Job(kind, folder, **{"input": str(self.corpus), "output": str(folder / "out"), **where})

    def quiet(self, kind: str) -> dict[str, str]:
        """The rows of an undisturbed run: digests by clip id."""
        if kind not in self._quiet:
            job, outcome = self.job(kind), Outcome()
            job.to_the_end(outcome)
            assert outcome.well, outcome
            rows = list(digests(locate(job.output)))
            self._quiet[kind] = dict(rows)
            assert len(self._quiet[kind]) == len(rows)
        return self._quiet[kind]

    def units(self, kind: str) -> int:
        return len(self.quiet(kind))

    def compare(self, job: Job, outcome: Outcome, excused: frozenset[str] = frozenset()) -> None:
        """Count what differs from the quiet run. Excused inputs may have rows, other rows, or failures."""
        expected, place = self.quiet(job.kind), locate(job.output)
        if not (place / "manifest.json").exists():
            outcome.wrong.append("there is no manifest")
            return
        found = [row for row in digests(place) if uri_of(row[0]) not in excused]
        counts = Counter(clip_id for clip_id, _ in found)
        outcome.lost += sum(uri_of(row) not in excused and row not in counts for row in expected)
        outcome.doubled += sum(count - 1 for count in counts.values())
        outcome.torn += sum(expected.get(clip_id) != digest for clip_id, digest in found)
        problems = verify(job.output).problems
        left = [info.path for info in place.files(recursive=True) if info.base_name.endswith(".tmp")]
        outcome.torn += len(problems) + len(left)
        outcome.wrong += [*problems, *left]


def uri_of(clip_id: str) -> str:
    return clip_id.rpartition("#")[0]


def digests(place: Location) -> Iterator[tuple[str, str]]:
    """(clip id, digest of the row, pixels and embeddings bit by bit) of what the manifest lists."""
    for file in json.loads((place / "manifest.json").read_bytes())["files"]:
        if file["path"].startswith("failures/"):
            continue
        data = pa.BufferReader((place / file["path"]).read_bytes())
        table = (
            pq.read_table(data) if file["path"].endswith(".parquet") else pa.ipc.open_file(data).read_all()
        )
        tensors = {
            name: column.combine_chunks().to_numpy_ndarray()
            for name, column in zip(table.column_names, table.columns, strict=True)
            if isinstance(column.type, pa.FixedShapeTensorType)
        }
        # One column is left out: it names an input's modification time, and copies have their own.
        rows = table.drop_columns([*tensors, "source_version"]).to_pylist()
        for number, row in enumerate(rows):
            digest = hashlib.sha256(repr(row).encode())
            for tensor in tensors.values():
                digest.update(tensor[number].tobytes())
            yield row["clip_id"], digest.hexdigest()


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    """A signal to processes, some of which may have ended."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


# Runs a job, lets something happen to it, and compares what is left; the random numbers are this round's own.
Round = Callable[[Bench, random.Random, int], Outcome]
