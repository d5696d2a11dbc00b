"""One run of a job: freeze, skip what is committed, send the rest through Ray, publish, report."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import ray

from jobs import embed, frozen, shard
from jobs.again import extend, retry
from jobs.cluster import Room, connected
from jobs.embed import Encoder
from jobs.frozen import FrozenPlan
from jobs.report import Progress, Report
from jobs.spec import EmbedSpec, ShardSpec
from pipeline import generations
from pipeline.commits import File, Run, only_writer
from pipeline.errors import SpecError
from pipeline.parts import arrange, join, join_failures, live_failures, measure
from pipeline.probing import probe_durations
from pipeline.shards import BATCH_ROWS
from pipeline.stages import Cutting, Pool, run_pools
from pipeline.storage import Location


class TooManyFailuresError(RuntimeError):
    """More inputs failed than `failure.max_failed_fraction` allows."""


@dataclass(frozen=True)
class Again:
    """What else to do than what a folder's plan says already.

    extend: take up inputs that have come since, or have changed. retry_failed: do what failed once more.
    watch_seconds: go on for ever, looking for new inputs that often.
    """

    extend: bool = False
    retry_failed: bool = False
    watch_seconds: float | None = None

    @property
    def wanted(self) -> bool:
        return self.extend or self.retry_failed or self.watch_seconds is not None


def run_job(spec: ShardSpec | EmbedSpec, progress: Progress, again: Again = Again()) -> Report:
    """Do a job, or what an earlier run of it left to do.

    Raises:
        SpecError: the spec cannot be met; nothing was computed.
        TooManyFailuresError: stopped early; what is committed stays.
    """
    spec = spec.absolute()  # workers have working directories of their own
    run = Run(spec.output.path, frozen.fingerprint(spec))
    with only_writer(spec.output.path):
        plan = frozen.read(run, spec)
        if plan is not None and not again.wanted and _finished(run, plan):
            _clean(run)
            return _report(spec, run, plan, 0.0, 0, progress)
        source = _list(spec, again, progress) if plan is None or again.extend else None
        encoder = _encoder(spec, plan, source)
        if encoder is not None:
            encoder.fetch()
            for line in encoder.warnings():
                progress.note(line, style="bold yellow")
        progress.status("starting Ray ...")
        with connected(spec.ray.address) as room:
            while True:
                begun = time.monotonic()
                plan = _plan(spec, run, plan, source, again, progress)
                new_clips = _work(run, plan, spec, _pools(spec, run, encoder, room, plan), room, progress)
                _publish(spec, run, plan)
                report = _report(spec, run, plan, time.monotonic() - begun, new_clips, progress)
                if again.watch_seconds is None:
                    return report
                progress.status(f"{report.clips:,} clips of {report.inputs:,} inputs; watching ...")
                time.sleep(again.watch_seconds)
                again = Again(extend=True, watch_seconds=again.watch_seconds)
                source = _list(spec, again, progress)


def _list(spec: ShardSpec | EmbedSpec, again: Again, progress: Progress) -> frozen.Source:
    """The input; one that is watched may have nothing in it for now."""
    if again.watch_seconds is None:
        return frozen.list_source(spec, may_be_empty=again.extend)
    while (source := frozen.list_source(spec, may_be_empty=True)).corpus is not None:
        if again.extend or not source.corpus.is_empty:
            break
        progress.status("nothing there yet; watching ...")
        time.sleep(again.watch_seconds)
    return source


def _plan(
    spec: ShardSpec | EmbedSpec,
    run: Run,
    plan: FrozenPlan | None,
    source: frozen.Source | None,
    again: Again,
    progress: Progress,
) -> FrozenPlan:
    """The job's plan as it is to be carried out now; what is new to it is in its folder by then."""
    durations = partial(probe_durations, limits=spec.limits)
    if plan is None:
        assert source is not None
        plan = frozen.freeze(run, spec, source, durations)
    else:
        if again.extend:
            assert source is not None
            new, changed = extend(run, spec, plan, source, durations)
            progress.status(f"{new:,} new inputs, {changed:,} have changed")
        if again.retry_failed:
            plan = frozen.read(run, spec) or plan
            progress.status(f"{retry(run, spec, plan, durations):,} failed inputs are done again")
        plan = frozen.read(run, spec) or plan
    if source is not None and source.corpus is not None and source.corpus.skipped:
        counts = ", ".join(f"{n} {suffix}" for suffix, n in sorted(source.corpus.skipped.items()))
        progress.note(f"left out, being neither video nor image: {counts}")
    return plan


def _encoder(
    spec: ShardSpec | EmbedSpec, plan: FrozenPlan | None, source: frozen.Source | None
) -> Encoder | None:
    if isinstance(spec, ShardSpec):
        return None
    sampling = spec.sampling or (plan.sampling if plan is not None else None)
    if sampling is None:
        assert source is not None
        sampling = source.sampling
    encoder = Encoder(spec.model, sampling)
    encoder.check()
    return encoder


def _finished(run: Run, plan: FrozenPlan) -> bool:
    return run.manifest() is not None and len(run.committed()) == plan.units


def _pools(
    spec: ShardSpec | EmbedSpec, run: Run, encoder: Encoder | None, room: Room, plan: FrozenPlan
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
    run: Run, plan: FrozenPlan, spec: ShardSpec | EmbedSpec, pools: list[Pool], room: Room, progress: Progress
) -> int:
    """Run the units that are not committed; returns how many clips they gave."""
    committed = run.committed()
    pending = generations.write_pending(run, plan.generations, committed)
    if not pending:
        return 0
    pools = [replace(pool, actors=min(pool.actors, pending)) for pool in pools]
    _refuse_what_does_not_fit(pools, room, progress)
    failed = len(_failed_inputs(live_failures(run, committed, generations.void(run.place, plan.generations))))
    clips, least = 0, spec.model.batch_views if isinstance(spec, EmbedSpec) else 0
    progress.start(plan.units, plan.units - pending)
    try:
        for receipt in run_pools(run.place / generations.PENDING, pools, spec.resources.object_store_bytes):
            clips += receipt.clips
            failed += receipt.failed_inputs
            progress.advance(receipt)
            if isinstance(spec, EmbedSpec) and (receipt.batch_views or least) < least:
                least = receipt.batch_views or least
                progress.note(f"out of memory on a GPU: batches of {least} views from now on", style="yellow")
            _refuse_failures(spec, plan, failed)
    finally:
        progress.stop()
    return clips


def _failed_inputs(failures: pa.Table) -> set[str]:
    """Those that gave nothing at all."""
    return set(failures.filter(pc.equal(failures["rows"], 0))["uri"].to_pylist())


def _refuse_failures(spec: ShardSpec | EmbedSpec, plan: FrozenPlan, failed: int) -> None:
    if failed > spec.failure.max_failed_fraction * plan.inputs:
        raise TooManyFailuresError(
            f"{failed} of {plan.inputs} inputs failed, more than failure.max_failed_fraction = "
            f"{spec.failure.max_failed_fraction} allows; see: tubelet failures {spec.output.path}"
        )


def _publish(spec: ShardSpec | EmbedSpec, run: Run, plan: FrozenPlan) -> None:
    """Join small files, on a worker each, swap in the manifest, and remove what it does not list."""
    receipts = list(run.receipts())
    if len(receipts) != plan.units:
        missing = plan.units - len(receipts)
        raise RuntimeError(f"{missing} units were not committed to {run.uri}; do all nodes see this folder?")
    void = generations.void(run.place, plan.generations)
    receipts = [receipt for receipt in receipts if receipt.unit not in void.units]
    with_failures = {receipt.unit for receipt in receipts if receipt.failures}
    _refuse_failures(spec, plan, len(_failed_inputs(live_failures(run, with_failures, void))))
    last = plan.generations[-1].number
    files = [file for receipt in receipts for file in receipt.files if not file.path.startswith("failures/")]
    if isinstance(spec, EmbedSpec):
        files = _join(run, files, last)
    if (failures := join_failures(run, with_failures, void, last)) is not None:
        files.append(failures)
    run.publish(spec.kind, files, receipts)
    _clean(run)


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


def _clean(run: Run) -> None:
    """Remove what the manifest does not list: joined unit files, and what killed workers left half done."""
    manifest = run.manifest()
    assert manifest is not None
    listed = {file["path"] for file in manifest["files"]}
    for folder in ("shards", "embeddings", "failures", "units", "commits", "attempts", "plan"):
        for info in (run.place / folder).files(recursive=True):
            path = info.path.removeprefix(f"{run.place.path}/")
            ours = run.fingerprint in info.base_name and folder != "commits"
            if path not in listed and (ours or info.base_name.endswith(".tmp")):
                Location(run.place.filesystem, info.path).delete()
    generations.remove_pending(run)


def _report(
    spec: ShardSpec | EmbedSpec,
    run: Run,
    plan: FrozenPlan,
    wall_seconds: float,
    new_clips: int,
    progress: Progress,
) -> Report:
    void = generations.void(run.place, plan.generations)
    manifest = run.manifest()
    assert manifest is not None
    data = [file for file in manifest["files"] if not file["path"].startswith("failures/")]
    failed = run.failures(manifest)
    report = Report(
        kind=spec.kind,
        model=spec.model.name if isinstance(spec, EmbedSpec) else None,
        output=spec.output.path,
        units=manifest["units"],
        inputs=plan.inputs,
        inputs_are="videos and images" if spec.input.shards is None else "rows of shards",
        failed_inputs=len(_failed_inputs(failed)),
        clips=manifest["rows"],
        failures=failed.num_rows,
        failures_by_reason=dict(Counter(failed["reason"].to_pylist())),
        output_bytes=sum(file["bytes"] for file in data),
        output_files=len(data),
        wall_seconds=wall_seconds,
        new_clips=new_clips,
        notes=list(progress.notes),
    )
    for receipt in run.receipts():
        if receipt.unit not in void.units:
            report.decode_seconds += receipt.decode_seconds
            report.model_seconds += receipt.model_seconds
    report.write(run)
    return report
