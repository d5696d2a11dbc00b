"""One run of a job: freeze, skip what is committed, send the rest through Ray, publish, report."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from functools import partial

import ray

from jobs import embed, frozen, shard
from jobs.cluster import Room, connected
from jobs.embed import Encoder
from jobs.frozen import FrozenPlan
from jobs.report import Progress, Report
from jobs.spec import EmbedSpec, ShardSpec
from pipeline.commits import Run, compact, only_writer, parts
from pipeline.errors import SpecError
from pipeline.probing import probe_durations
from pipeline.shards import BATCH_ROWS
from pipeline.stages import Cutting, Pool, run_pools
from pipeline.storage import Location


class TooManyFailuresError(RuntimeError):
    """More inputs failed than `failure.max_failed_fraction` allows."""


def run_job(spec: ShardSpec | EmbedSpec, progress: Progress) -> Report:
    """Do a job, or what an earlier run of it left to do.

    Raises:
        SpecError: the spec cannot be met; nothing was computed.
        TooManyFailuresError: stopped early; what is committed stays.
    """
    spec = spec.absolute()  # workers have working directories of their own
    run = Run(spec.output.path, frozen.fingerprint(spec))
    with only_writer(spec.output.path):
        plan = frozen.read(run, spec)
        source = frozen.list_source(spec) if plan is None else None
        encoder = _encoder(spec, plan, source)
        to_do = plan is None or not _finished(run, plan)
        if to_do and encoder is not None:
            encoder.fetch()
        _announce(progress, source, encoder)
        begun, new_clips = time.monotonic(), 0
        if to_do:
            progress.status("starting Ray ...")
            with connected(spec.ray.address) as room:
                begun = time.monotonic()
                if plan is None:
                    assert source is not None
                    plan = frozen.freeze_source(spec, source, partial(probe_durations, limits=spec.limits))
                    frozen.write(run, spec, plan)
                    plan = frozen.read(run, spec)  # as every later run will see it
                assert plan is not None
                pools = _pools(spec, run, plan, encoder, room)
                _refuse_what_does_not_fit(pools, room, progress)
                if frozen.write_pending(run, plan):
                    new_clips = _work(run, plan, spec, pools, progress)
                _publish(spec, run, plan)
        assert plan is not None
        _clean(run)
        report = _report(spec, run, plan, time.monotonic() - begun, new_clips, progress.notes)
        report.write(run)
    return report


def _encoder(
    spec: ShardSpec | EmbedSpec, plan: FrozenPlan | None, source: frozen.Source | None
) -> Encoder | None:
    if isinstance(spec, ShardSpec):
        return None
    sampling = spec.sampling or (plan.sampling if plan is not None else None)
    if sampling is None:
        assert source is not None
        assert source.shards is not None
        sampling = next(iter(source.shards.values())).sampling
    encoder = Encoder(spec.model, sampling)
    encoder.check()
    return encoder


def _announce(progress: Progress, source: frozen.Source | None, encoder: Encoder | None) -> None:
    """Say what would otherwise be found out late: random weights, and files that are left out."""
    for line in encoder.warnings() if encoder is not None else ():
        progress.note(line, style="bold yellow")
    if source is not None and source.corpus is not None and source.corpus.skipped:
        counts = ", ".join(f"{n} {suffix}" for suffix, n in sorted(source.corpus.skipped.items()))
        progress.note(f"left out, being neither video nor image: {counts}")


def _finished(run: Run, plan: FrozenPlan) -> bool:
    return run.manifest() is not None and len(run.committed()) == plan.units.num_rows


def _pools(
    spec: ShardSpec | EmbedSpec, run: Run, plan: FrozenPlan, encoder: Encoder | None, room: Room
) -> list[Pool]:
    session = uuid.uuid4().hex
    batch_rows = spec.model.batch_views if isinstance(spec, EmbedSpec) else BATCH_ROWS
    cutting = Cutting(
        plan.root,
        plan.sampling,
        plan.plans,
        plan.extra,
        spec.failure.attempts,
        batch_rows,
        spec.limits,
        spec.resources.decode.hardware,
    )
    if isinstance(spec, ShardSpec):
        return shard.pools(spec, run, cutting, session, room)
    assert encoder is not None
    return embed.pools(spec, run, encoder, cutting, session, room)


def _refuse_what_does_not_fit(pools: list[Pool], room: Room, progress: Progress) -> None:
    """Workers that can never start would be waited for without end; a cluster that may grow is told of."""
    for what, asked, there in (
        ("cpus", sum(pool.actors * pool.cpus for pool in pools), room.cpus),
        ("gpus", sum(pool.actors * pool.gpus for pool in pools), room.gpus),
    ):
        if asked > there:
            if room.may_grow:
                progress.note(
                    f"waiting for the cluster to grow: workers want {asked:g} {what}, it has {there:g}"
                )
                continue
            problem = f"this machine has {there:g}; ask for fewer actors, or for less for each"
            raise SpecError(f"resources (actors x {what})", asked, problem)


def _work(
    run: Run, plan: FrozenPlan, spec: ShardSpec | EmbedSpec, pools: list[Pool], progress: Progress
) -> int:
    """Run the units that are not committed; returns how many clips they gave."""
    total, done = plan.units.num_rows, len(run.committed())
    clips, failed = 0, sum(receipt.failed_inputs for receipt in run.receipts()) if done else 0
    progress.start(total, done)
    try:
        for receipt in run_pools(run.place / frozen.PENDING, pools, spec.resources.object_store_bytes):
            clips += receipt.clips
            failed += receipt.failed_inputs
            progress.advance(receipt)
            _refuse_failures(spec, plan, failed)
    finally:
        progress.stop()
    return clips


def _refuse_failures(spec: ShardSpec | EmbedSpec, plan: FrozenPlan, failed: int) -> None:
    if failed > spec.failure.max_failed_fraction * plan.inputs:
        raise TooManyFailuresError(
            f"{failed} of {plan.inputs} inputs failed, more than failure.max_failed_fraction = "
            f"{spec.failure.max_failed_fraction} allows; see {spec.output.path}/failures"
        )


def _publish(spec: ShardSpec | EmbedSpec, run: Run, plan: FrozenPlan) -> None:
    """Join small embedding files into parts, on a worker each, and swap in the manifest."""
    receipts = list(run.receipts())
    _refuse_failures(spec, plan, sum(receipt.failed_inputs for receipt in receipts))
    if len(receipts) != plan.units.num_rows:
        missing = plan.units.num_rows - len(receipts)
        raise RuntimeError(f"{missing} units were not committed to {run.uri}; do all nodes see this folder?")
    files = [file for receipt in receipts for file in receipt.files]
    failures = [file for file in files if file.path.startswith("failures/")]
    data = [file for file in files if not file.path.startswith("failures/")]
    if isinstance(spec, EmbedSpec):
        join = ray.remote(num_cpus=0)(compact)
        data = ray.get([join.remote(run, index, group) for index, group in enumerate(parts(data))])
    run.publish(spec.kind, [*data, *failures], receipts)


def _clean(run: Run) -> None:
    """Remove what the manifest does not list: joined unit files, and what killed workers left half done."""
    manifest = run.manifest()
    assert manifest is not None
    listed = {file["path"] for file in manifest["files"]}
    for folder in ("shards", "embeddings", "failures", "units", "commits", "attempts"):
        for info in (run.place / folder).files(recursive=True):
            path = info.path.removeprefix(f"{run.place.path}/")
            ours = run.fingerprint in info.base_name and folder != "commits"
            if path not in listed and (ours or info.base_name.endswith(".tmp")):
                Location(run.place.filesystem, info.path).delete()
    frozen.remove_pending(run)


def _report(
    spec: ShardSpec | EmbedSpec,
    run: Run,
    plan: FrozenPlan,
    wall_seconds: float,
    new_clips: int,
    notes: list[str],
) -> Report:
    receipts = list(run.receipts())
    manifest = run.manifest()
    assert manifest is not None
    data = [file for file in manifest["files"] if not file["path"].startswith("failures/")]
    failed = run.failures(manifest)
    return Report(
        kind=spec.kind,
        model=spec.model.name if isinstance(spec, EmbedSpec) else None,
        output=spec.output.path,
        units=len(receipts),
        inputs=plan.inputs,
        inputs_are="videos and images" if spec.input.shards is None else "rows of shards",
        failed_inputs=len(set(failed["uri"].to_pylist())),
        clips=sum(receipt.clips for receipt in receipts),
        failures=failed.num_rows,
        failures_by_reason=dict(Counter(failed["reason"].to_pylist())),
        decode_seconds=sum(receipt.decode_seconds for receipt in receipts),
        model_seconds=sum(receipt.model_seconds for receipt in receipts),
        output_bytes=sum(file["bytes"] for file in data),
        output_files=len(data),
        wall_seconds=wall_seconds,
        new_clips=new_clips,
        notes=list(notes),
    )
