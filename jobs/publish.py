"""The end of a run: join its small files, swap in the manifest, clean up, report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import ray

from jobs import hindsight
from jobs.frozen import FrozenPlan
from jobs.report import Report
from jobs.report_page import page
from jobs.spec import EmbedSpec, ShardSpec, dump
from jobs.thumbnails import thumbnails
from jobs.timeline import Timeline
from pipeline import generations
from pipeline.commits import File, Run
from pipeline.parts import arrange, join, join_failures, live_failures, measure
from pipeline.storage import REQUESTS_AT_ONCE, Location, write_atomic


class TooManyFailuresError(RuntimeError):
    """More inputs failed than `failure.max_failed_fraction` allows."""


def finished(run: Run, plan: FrozenPlan) -> bool:
    """Is there nothing left to do?"""
    return run.manifest() is not None and len(run.committed()) == plan.units


def failed_inputs(failures: pa.Table) -> set[str]:
    """Those that gave nothing at all."""
    return set(failures.filter(pc.equal(failures["rows"], 0))["uri"].to_pylist())


def refuse_failures(spec: ShardSpec | EmbedSpec, plan: FrozenPlan, failed: int) -> None:
    if failed > spec.failure.max_failed_fraction * plan.inputs:
        raise TooManyFailuresError(
            f"{failed} of {plan.inputs} inputs failed, more than failure.max_failed_fraction = "
            f"{spec.failure.max_failed_fraction} allows; see: tubelet failures {spec.output.path}"
        )


def publish(spec: ShardSpec | EmbedSpec, run: Run, plan: FrozenPlan, check: Callable[[], None]) -> None:
    """Join small files, on a worker each, swap in the manifest, and remove what it does not list."""
    receipts = list(run.receipts())
    if len(receipts) != plan.units:
        missing = plan.units - len(receipts)
        raise RuntimeError(f"{missing} units were not committed to {run.uri}; do all nodes see this folder?")
    void = generations.void(run.place, plan.generations)
    receipts = [receipt for receipt in receipts if receipt.unit not in void.units]
    with_failures = {receipt.unit for receipt in receipts if receipt.failures}
    refuse_failures(spec, plan, len(failed_inputs(live_failures(run, with_failures, void))))
    last = plan.generations[-1].number
    files = [file for receipt in receipts for file in receipt.files if not file.path.startswith("failures/")]
    if isinstance(spec, EmbedSpec):
        files = _join(run, files, last)
    if (failures := join_failures(run, with_failures, void, last)) is not None:
        files.append(failures)
    check()
    run.publish(spec.kind, files, receipts)
    clean(run)


def _join(run: Run, files: list[File], generation: int) -> list[File]:
    arranged = arrange(run, files, generation)
    manifest = run.manifest()
    listed = {file["path"]: File(**file) for file in manifest["files"]} if manifest is not None else {}
    on_a_worker = ray.remote(num_cpus=0)
    kept = [
        ray.put(listed[name]) if name in listed else on_a_worker(measure).remote(run, name)
        for name in arranged.kept
    ]
    new = [on_a_worker(join).remote(run, name, slices) for name, slices in arranged.to_write]
    return sorted(ray.get([*kept, *new]), key=lambda file: file.path)


def clean(run: Run) -> None:
    """Remove what the manifest does not list: joined unit files, and what killed workers left half done."""
    manifest = run.manifest()
    assert manifest is not None
    listed = {file["path"] for file in manifest["files"]}
    leftovers = []
    for folder in ("shards", "embeddings", "failures", "units", "commits", "attempts", "plan"):
        for info in (run.place / folder).files(recursive=True):
            path = info.path.removeprefix(f"{run.place.path}/")
            ours = run.fingerprint in info.base_name and folder != "commits"
            if path not in listed and (ours or info.base_name.endswith(".tmp")):
                leftovers.append(Location(run.place.filesystem, info.path))
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        list(threads.map(Location.delete, leftovers))
    generations.remove_pending(run)


def report(
    spec: ShardSpec | EmbedSpec,
    run: Run,
    plan: FrozenPlan,
    before: Collection[int],
    wall_seconds: float,
    notes: list[str],
    workers: Mapping[str, int] | None = None,
) -> Report:
    """What the folder holds now, and how fast this call was, which found the units of `before` committed.

    Args:
        workers: {stage: how many} there were for this call.
    """
    void = generations.void(run.place, plan.generations)
    manifest = run.manifest()
    assert manifest is not None
    data = [file for file in manifest["files"] if not file["path"].startswith("failures/")]
    failed = run.failures(manifest)
    found = Report(
        kind=spec.kind,
        model=spec.model.name if isinstance(spec, EmbedSpec) else None,
        output=spec.output.path,
        units=manifest["units"],
        inputs=plan.inputs,
        inputs_are="videos and images" if spec.input.shards is None else "rows of shards",
        failed_inputs=len(failed_inputs(failed)),
        clips=manifest["rows"],
        failures=failed.num_rows,
        failures_by_reason=dict(Counter(failed["reason"].to_pylist())),
        output_bytes=sum(file["bytes"] for file in data),
        output_files=len(data),
        wall_seconds=wall_seconds,
        notes=list(notes),
    )
    receipts = [receipt for receipt in run.receipts() if receipt.unit not in void.units]
    found.add(receipts, [receipt for receipt in receipts if receipt.unit not in before])
    if (kept := hindsight.read(run)) is not None:
        found.estimate = hindsight.compare(kept, found, workers or {})
    if not found.told(run.place):
        pictures = thumbnails(spec, run, plan.root, plan.sampling)
        shown = page(found, Timeline.of(receipts), failed, pictures, dump(spec))
        write_atomic(run.place / "report.html", shown.encode(errors="replace"))
        found.write(run.place)
    return found
