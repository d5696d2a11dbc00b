"""A run's folder: what is committed, what failed, and the manifest (contracts C6 and C7).

A unit's files are written under names made of the unit and the run's fingerprint; then one commit record says
that they are there. A unit without a record does not exist, and doing it again writes the same names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import Failure, SpecError
from pipeline.shards import FAILURES, failure_table
from pipeline.storage import REQUESTS_AT_ONCE, Location, atomic_file, locate, write_atomic


@dataclass(frozen=True)
class File:
    """One output file, as commit records and the manifest list it; `path` is relative to the run's folder."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Work:
    """When a worker of a stage had a unit, in seconds since 1970 by its own clock."""

    stage: str
    worker: str  # host and process
    begun_at: float
    ended_at: float
    peak_memory_bytes: int  # of that process so far, with what it has touched of memory that is shared


@dataclass
class Receipt:
    """What became of one unit: its commit record, and the one row that travels back to the driver.

    Records of earlier versions lack some fields, and count for nothing there.
    """

    unit: int
    inputs: int = 0
    failed_inputs: int = 0  # that gave nothing at all
    clips: int = 0
    failures: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # of the failures
    frames: int = 0  # that decoders gave out, also those that no clip shows
    video_seconds: float = 0.0  # that clips cover, each moment once
    tube_bytes: int = 0
    decode_seconds: float = 0.0  # wall time inside the decoder, and inside the model
    decode_cpu_seconds: float = 0.0
    model_seconds: float = 0.0
    wait_seconds: float = 0.0  # that the model's worker had nothing to do before this unit, or within it
    gpu_seconds: float = 0.0  # model_seconds, times the GPUs that its worker holds
    batch_views: int | None = None  # of the model in the end: fewer than asked for if a GPU's memory ran out
    work: list[Work] = field(default_factory=list)
    files: list[File] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Receipt:
        values = json.loads(text)
        work = [Work(**work) for work in values.get("work", ())]
        return cls(**{**values, "work": work, "files": [File(**file) for file in values["files"]]})


@dataclass(frozen=True)
class Run:
    """The folder that a run writes to. Cheap to send to workers."""

    uri: str
    fingerprint: str

    @property
    def place(self) -> Location:
        return locate(self.uri, "output.path")

    def name(self, unit: int) -> str:
        return f"{unit:08d}-{self.fingerprint}"

    def write_table(self, path: str, table: pa.Table) -> File:
        """Write a Parquet file, whole or not at all."""
        with atomic_file(self.place / path) as sink:
            pq.write_table(table, sink, compression="zstd")
        written = sink.done()
        return File(path, table.num_rows, written.size_bytes, written.sha256)

    def commit(self, receipt: Receipt, failures: Sequence[Failure]) -> None:
        """Write a unit's failures, then its record: from here on the unit exists."""
        if failures:
            table = failure_table(failures, receipt.unit)
            receipt.files.append(self.write_table(f"failures/{self.name(receipt.unit)}.parquet", table))
        receipt.failures = len(failures)
        receipt.reasons = dict(Counter(failure.reason for failure in failures))
        write_atomic(self.place / f"commits/{self.name(receipt.unit)}.json", receipt.to_json().encode())

    def committed(self) -> set[int]:
        """The units that exist, by the names of their records alone."""
        names = (info.base_name for info in (self.place / "commits").files())
        suffix = f"-{self.fingerprint}.json"
        return {int(name.removesuffix(suffix)) for name in names if name.endswith(suffix)}

    def receipts(self) -> Iterator[Receipt]:
        """The commit records, in the order of their units."""
        units = sorted(self.committed())
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            for start in range(0, len(units), 1 << 12):
                yield from threads.map(self._receipt, units[start : start + (1 << 12)])

    def _receipt(self, unit: int) -> Receipt:
        name = f"commits/{self.name(unit)}.json"
        try:
            return Receipt.from_json((self.place / name).read_bytes())
        except (ValueError, TypeError, KeyError):
            problem = f"{name} is not as it was written; delete it and run again, which does its unit again"
            raise SpecError("output.path", self.uri, problem) from None

    def manifest(self) -> dict[str, Any] | None:
        place = self.place / "manifest.json"
        return json.loads(place.read_bytes()) if place.exists() else None

    def failures(self, manifest: dict[str, Any]) -> pa.Table:
        """Every failure row that the manifest lists."""
        tables = [FAILURES.empty_table()]
        for file in manifest["files"]:
            if file["path"].startswith("failures/"):
                place = self.place / file["path"]
                with place.filesystem.open_input_file(place.path) as source:
                    tables.append(pq.read_table(source))
        return pa.concat_tables(tables)

    def publish(self, kind: str, files: Sequence[File], receipts: Sequence[Receipt]) -> None:
        """Swap in the manifest: what a reader of this folder should read, each unit counted once."""
        lost = sum(file.rows for file in files if file.path.startswith("failures/"))
        manifest = {
            "format": 2,
            "kind": kind,
            "fingerprint": self.fingerprint,
            "units": len(receipts),
            "rows": sum(receipt.clips for receipt in receipts),
            "failures": lost,
            "files": [asdict(file) for file in files],
        }
        write_atomic(self.place / "manifest.json", json.dumps(manifest, indent=1).encode())
