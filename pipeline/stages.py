"""What actors do with a unit: decode it for a next stage, or cut it into a shard and commit that."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.attempts import Attempts, bounded
from pipeline.commits import File, Receipt, Run, Work
from pipeline.corpus import Media, open_listed
from pipeline.errors import Failure, MediaError, failure_of
from pipeline.limits import Hardware, Limits
from pipeline.metrics import Metrics
from pipeline.plan import Plan
from pipeline.rows import Covered, Rows
from pipeline.sampling import Sampling
from pipeline.shards import shard_schema
from pipeline.storage import Identity, atomic_file
from pipeline.video import Lost, Pixels, Tally, read_clips

# A unit waits between two stages as one row of this schema: its views as an Arrow IPC stream.
DECODED = pa.schema(
    [
        ("receipt", pa.string()),
        ("media", pa.string()),
        ("views", pa.large_binary()),
        ("failures", pa.string()),
    ]
)
RECEIPT = pa.schema([("receipt", pa.string())])


@dataclass(frozen=True)
class Cutting:
    """All that decoding needs to know of a job."""

    root: str
    sampling: Sampling
    plans: dict[Media, Plan]
    extra: tuple[pa.Field, ...]
    attempts: int
    batch_rows: int
    limits: Limits
    hardware: Hardware | None
    identity: Identity = "modified"

    def schema(self, media: Media) -> pa.Schema:
        return shard_schema(self.plans[media], self.sampling, self.extra)

    def attempts_at(self, run: Run, unit: int, session: str) -> Attempts:
        return Attempts(run, unit, session, self.attempts, self.limits.timeout_seconds).begin()

    def _clips(self, media: Media) -> Sampling:
        return self.sampling if media == "video" else self.sampling.still

    def unit(
        self,
        row: dict[str, Any],
        attempts: Attempts,
        receipt: Receipt,
        failures: list[Failure],
    ) -> Iterator[pa.RecordBatch]:
        """Decode and cut a unit: batches of views in plan order; what is lost goes to `failures`."""
        media: Media = row["media"]
        plan, sampling = self.plans[media], self._clips(media)
        rows, covered, tally = Rows(self.schema(media), plan, self.batch_rows), Covered(), Tally()
        for number, item in enumerate(row["items"]):
            made, lost = rows.count, len(failures)
            batches = self._guarded(number, item, attempts, plan, sampling, rows, failures, tally)
            for batch in _timed(batches, receipt):
                covered.add(batch)
                yield batch
            kept = rows.count - made
            failures[lost:] = [
                replace(failure, item=number, rows=kept, worker=worker()) for failure in failures[lost:]
            ]
            if item["first_clip"] == 0:  # of a split video only the first part counts
                receipt.inputs += 1
                receipt.failed_inputs += len(failures) > lost and rows.count == made
        attempts.note(None)
        if (batch := rows.flush()) is not None:
            covered.add(batch)
            yield batch
        receipt.clips, receipt.frames = rows.count, tally.frames
        receipt.tube_bytes = rows.count * plan.bytes_per_clip
        receipt.video_seconds = covered.seconds if media == "video" else 0.0

    def _guarded(
        self,
        number: int,
        item: dict[str, Any],
        attempts: Attempts,
        plan: Plan,
        sampling: Sampling,
        rows: Rows,
        failures: list[Failure],
        tally: Tally,
    ) -> Iterator[pa.RecordBatch]:
        """One input; whatever it makes the libraries do is its failure, and not the job's end."""
        uri = item["uri"]
        verdict = attempts.verdict(number)
        if verdict is not None:
            reason, times = verdict
            message = f"its decoder {'hung' if reason == 'timeout' else 'died'} each of {times} times"
            failures.append(Failure(uri, "decode", reason, message, attempts=times))
            return
        attempts.note(number)
        with bounded(self.limits.timeout_seconds):
            yield from self._caught(item, plan, sampling, rows, failures, tally)

    def _caught(
        self,
        item: dict[str, Any],
        plan: Plan,
        sampling: Sampling,
        rows: Rows,
        failures: list[Failure],
        tally: Tally,
    ) -> Iterator[pa.RecordBatch]:
        """One input's batches; what its libraries raise becomes a failure."""
        uri = item["uri"]
        views = self._views(item, plan, sampling, tally)
        while True:
            try:
                source_version, view = next(views)
            except StopIteration:
                return
            except Exception as error:
                failures.append(failure_of(uri, error))
                return
            if isinstance(view, Lost):
                lost = view.error
                failures.append(
                    Failure(uri, "decode", lost.reason, str(lost), lost.position_seconds, view.clip)
                )
            elif (batch := rows.add(item, source_version, view, sampling)) is not None:
                yield batch

    def _views(
        self, item: dict[str, Any], plan: Plan, sampling: Sampling, tally: Tally
    ) -> Iterator[tuple[str, Pixels | Lost]]:
        """(what the file's content is known by, view) for each view of an input."""
        try:
            place, source_version = open_listed(self.root, item, self.identity)
        except MediaError as error:
            remedy = "; run with --extend to list it again" if error.reason == "changed" else ""
            raise MediaError(error.reason, f"{error}{remedy}") from error
        span = (item["start_seconds"], item["end_seconds"])
        window = (item["first_clip"], item["stop_clip"])
        for view in read_clips(place, sampling, plan, span, window, self.limits, self.hardware, tally):
            yield source_version or "", view


def _timed(batches: Iterator[pa.RecordBatch], receipt: Receipt) -> Iterator[pa.RecordBatch]:
    """The same, and how long it takes to make them; what their taker does with them is not counted."""
    while True:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        batch = next(batches, None)
        receipt.decode_seconds += time.perf_counter() - begun
        receipt.decode_cpu_seconds += time.process_time() - cpu_begun
        if batch is None:
            return
        yield batch


class Decode:
    """Stage: a unit's inputs -> its views, for a next stage to commit."""

    def __init__(self, run: Run, cutting: Cutting, session: str):
        self._run, self._cutting, self._session = run, cutting, session
        self._metrics = Metrics(run, "decode")

    def __call__(self, units: pa.Table) -> pa.Table:
        begun_at, row = time.time(), units.to_pylist()[0]
        receipt = Receipt(row["unit"])
        failures: list[Failure] = []
        attempts = self._cutting.attempts_at(self._run, row["unit"], self._session)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._cutting.schema(row["media"])) as writer:
            for batch in self._cutting.unit(row, attempts, receipt, failures):
                writer.write_batch(batch)
        attempts.end()
        receipt.work.append(work("decode", begun_at))
        self._metrics.decoded(receipt)
        self._metrics.worked(receipt.work[-1])
        views = sink.getvalue()
        ends = pa.array([0, views.size], pa.int64()).buffers()[1]
        return pa.table(
            [
                pa.array([receipt.to_json()]),
                pa.array([row["media"]]),
                pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, views]),
                pa.array([json.dumps([asdict(failure) for failure in failures])]),
            ],
            schema=DECODED,
        )


class Shard:
    """Stage: a unit's inputs -> one committed shard."""

    def __init__(self, run: Run, cutting: Cutting, session: str):
        self._run, self._cutting, self._session = run, cutting, session
        self._metrics = Metrics(run, "shard")

    def __call__(self, units: pa.Table) -> pa.Table:
        begun_at, row = time.time(), units.to_pylist()[0]
        receipt = Receipt(row["unit"])
        failures: list[Failure] = []
        attempts = self._cutting.attempts_at(self._run, row["unit"], self._session)
        path = f"shards/{row['media']}/{self._run.name(row['unit'])}.arrow"
        schema = self._cutting.schema(row["media"])
        batches = self._cutting.unit(row, attempts, receipt, failures)
        first = next(batches, None)
        if first is not None:
            with atomic_file(self._run.place / path) as sink, pa.ipc.new_file(sink, schema) as writer:
                writer.write_batch(first)
                for batch in batches:
                    writer.write_batch(batch)
            written = sink.done()
            receipt.files.append(File(path, receipt.clips, written.size_bytes, written.sha256))
        receipt.work.append(work("shard", begun_at))
        self._run.commit(receipt, failures)
        attempts.end()
        self._metrics.decoded(receipt)
        self._metrics.committed(receipt, failures)
        self._metrics.worked(receipt.work[-1])
        return pa.table([[receipt.to_json()]], schema=RECEIPT)


def worker() -> str:
    """This process, for a failure's row."""
    return f"{socket.gethostname()}:{os.getpid()}"


def work(stage: str, begun_at: float) -> Work:
    """What this process did of a unit, up to now."""
    return Work(stage, worker(), begun_at, time.time(), peak_memory_bytes())


def peak_memory_bytes() -> int:
    """The most memory that this process has had.

    Linux counts for `getrusage` what a process' parent had when it started it, and for /proc what it had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def unpack(decoded: pa.Table) -> tuple[Receipt, Media, Sequence[pa.RecordBatch], list[Failure]]:
    """What `Decode` sent: the views are mapped from the object store, not copied."""
    receipt = Receipt.from_json(decoded["receipt"][0].as_py())
    views = decoded["views"].chunk(0)[0].as_buffer()
    with pa.ipc.open_stream(views) as reader:
        batches = list(reader)
    failures = [Failure(**failure) for failure in json.loads(decoded["failures"][0].as_py())]
    return receipt, decoded["media"][0].as_py(), batches, failures
