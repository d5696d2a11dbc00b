"""Is everything that a run claims there, once, and unharmed? Reads the folder; changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import generations
from pipeline.commits import File, Receipt, Run
from pipeline.errors import SpecError
from pipeline.parts import live_failures
from pipeline.storage import READ_BYTES, Location, locate

OUTPUTS = ("shards", "embeddings", "failures", "units")

Say = Callable[[str], None]


@dataclass
class Verdict:
    """What was counted, and a line for each thing that is wrong: what, where, and what to do."""

    units: int = 0
    rows: int = 0
    failures: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)


def verify(folder: str) -> Verdict:
    """Check a run's output folder against its plan, its commit records and its manifest.

    Raises:
        SpecError: the folder is not a run's output.
    """
    place = locate(folder, "DIR")
    plan = _plan(place, folder)
    verdict = Verdict()
    say = verdict.problems.append
    receipts = _receipts(place, say)
    planned = set(range(sum(generation.units for generation in plan)))
    void = generations.void(place, plan)
    if missing := planned - receipts.keys():
        say(
            f"{len(missing)} of {len(planned)} units are not committed (first unit {min(missing)}): run again"
        )
    if strange := receipts.keys() - planned:
        say(f"commits/: unit {min(strange)} is not in the plan: delete its record and files")
    # Joined files may still lie there after a kill, and so may those of void units; a rerun removes them.
    recorded = {file.path: file for receipt in receipts.values() for file in receipt.files}
    receipts = {unit: receipt for unit, receipt in receipts.items() if unit not in void.units}
    verdict.units = len(receipts)
    files = _listed(place, say)
    published = files is not None
    if files is None:
        files = {
            path: file for path, file in recorded.items() if not _joinable(path) or (place / path).exists()
        }
        if not missing and not (place / "manifest.json").exists():
            say("there is no manifest.json: run the job again, which builds it")
    elif not missing:  # while units are, the manifest is the one before
        _count(json.loads((place / "manifest.json").read_bytes()), receipts, files, bool(void.items), say)
    clip_ids: list[pa.ChunkedArray] = []
    for file in files.values():
        ids = _check(place, file, say)
        if ids is not None:
            clip_ids.append(ids)
            verdict.rows += len(ids)
        elif file.path.startswith("failures/"):
            verdict.failures += file.rows
    verdict.files = len(files)
    _doubled(clip_ids, say)
    expected = files.keys() | recorded.keys()
    for name in OUTPUTS:
        for info in (place / name).files(recursive=True):
            path = info.path.removeprefix(f"{place.path}/")
            joined = not published and "/part-" in path  # it may be all that is left of its units
            if path not in expected and not joined:
                say(f"{path}: no commit record knows this file: delete it")
    return verdict


def failures(folder: str) -> pa.Table:
    """The failures that hold in a run's output folder, finished or not (schema: pipeline.shards.FAILURES).

    Raises:
        SpecError: the folder is not a run's output.
    """
    place = locate(folder, "DIR")
    plan = _plan(place, folder)
    run = Run(folder, plan[0].settings["fingerprint"])
    return live_failures(run, run.committed(), generations.void(place, plan))


def _plan(place: Location, folder: str) -> list[generations.Generation]:
    if found := generations.read(place):
        return found
    raise SpecError("DIR", folder, "not a run's output folder: there is no plan in it")


def _joinable(path: str) -> bool:
    return path.startswith(("units/", "failures/"))


def _listed(place: Location, say: Say) -> dict[str, File] | None:
    """The files of the manifest, if there is one."""
    if not (place / "manifest.json").exists():
        return None
    try:
        manifest = json.loads((place / "manifest.json").read_bytes())
        return {file["path"]: File(**file) for file in manifest["files"]}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        say("manifest.json cannot be read: delete it and run the job again, which builds it anew")
        return None


def _receipts(place: Location, say: Say) -> dict[int, Receipt]:
    receipts: dict[int, Receipt] = {}
    for info in (place / "commits").files():
        name = f"commits/{info.base_name}"
        if not info.base_name.endswith(".json"):
            say(f"{name}: left by a run that was killed: delete it")
            continue
        try:
            receipt = Receipt.from_json(Location(place.filesystem, info.path).read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError):
            say(f"{name}: cannot be read: delete it and run the job again, which does this unit again")
            continue
        if receipt.unit in receipts:
            say(f"{name}: unit {receipt.unit} is committed twice: delete one record and its files")
        elif not info.base_name.startswith(f"{receipt.unit:08d}-"):
            say(f"{name}: is the record of unit {receipt.unit}: delete it and run the job again")
        receipts[receipt.unit] = receipt
    return receipts


def _count(
    manifest: dict[str, Any], receipts: dict[int, Receipt], files: dict[str, File], redone: bool, say: Say
) -> None:
    """The manifest must count what the commit records count."""
    rows = sum(receipt.clips for receipt in receipts.values())
    listed = sum(file.rows for file in files.values() if not file.path.startswith("failures/"))
    checks = [
        ("units", len(receipts), manifest["units"]),
        ("rows", rows, manifest["rows"]),
        ("rows in its files", rows, listed),
    ]
    if not redone:  # of failures that were done again records still tell
        lost = sum(receipt.failures for receipt in receipts.values())
        checks.append(("failures", lost, manifest["failures"]))
    for what, counted, claimed in checks:
        if counted != claimed:
            say(
                f"manifest.json: says {claimed} {what}, the commit records {counted}: delete it and run again"
            )


def _check(place: Location, file: File, say: Say) -> pa.ChunkedArray | None:
    """Compare a file with its record; its clip ids, unless it holds failures or cannot be read."""
    target = place / file.path
    advice = "delete it and its unit's record in commits/, and run the job again"
    if file.path.startswith("embeddings/"):
        advice = "delete embeddings/, commits/ and manifest.json, and run the job again"
    if not target.exists():
        say(f"{file.path}: is missing: {advice}")
        return None
    digest = hashlib.sha256()
    size = 0
    with target.filesystem.open_input_stream(target.path) as stream:
        while chunk := stream.read(READ_BYTES):
            digest.update(chunk)
            size += len(chunk)
    if size != file.bytes:
        say(f"{file.path}: has {size} bytes, but {file.bytes} were written: {advice}")
        return None
    if digest.hexdigest() != file.sha256:
        say(f"{file.path}: its checksum has changed since it was written: {advice}")
        return None
    if file.path.startswith("failures/"):
        with target.filesystem.open_input_file(target.path) as source:
            rows = pq.read_metadata(source).num_rows
        if rows != file.rows:
            say(f"{file.path}: holds {rows} rows, but {file.rows} were written: {advice}")
        return None
    with target.filesystem.open_input_file(target.path) as source:
        if file.path.endswith(".parquet"):
            ids = pq.read_table(source, columns=["clip_id"])["clip_id"]
        else:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            ids = pa.chunked_array([batch["clip_id"] for batch in batches], pa.string())
    if len(ids) != file.rows:
        say(f"{file.path}: holds {len(ids)} rows, but its record says {file.rows}: {advice}")
    return ids


def _doubled(clip_ids: list[pa.ChunkedArray], say: Say) -> None:
    if not clip_ids:
        return
    every = pa.chunked_array([chunk for ids in clip_ids for chunk in ids.chunks], pa.string())
    if len(pc.unique(every)) == len(every):
        return
    (name, count), *_ = Counter(every.to_pylist()).most_common(1)
    say(f"clip {name} is there {count} times, in {len(every)} rows: report this, it must not happen")
