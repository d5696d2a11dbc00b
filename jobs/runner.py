"""One run of a job: freeze, skip what is committed, send the rest through Ray, publish, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial

from jobs import frozen, placement
from jobs.again import extend, retry
from jobs.cluster import connected
from jobs.embed import Encoder
from jobs.frozen import FrozenPlan
from jobs.progress import Progress
from jobs.publish import clean, failed_inputs, finished, publish, refuse_failures, report
from jobs.report import Report
from jobs.room import Room
from jobs.spec import EmbedSpec, ShardSpec
from pipeline import generations
from pipeline.attempts import longest_seconds
from pipeline.commits import Run
from pipeline.lock import only_writer
from pipeline.parts import live_failures
from pipeline.pools import Patience, Standing, run_pools
from pipeline.probing import hash_contents, probe_durations

ITEM_SECONDS = 60.0


@dataclass(frozen=True)
class _Job:
    """What all steps of a run need to know."""

    spec: ShardSpec | EmbedSpec
    run: Run
    encoder: Encoder | None
    room: Room
    progress: Progress
    check: Callable[[], None]  # raises if the folder is no longer this run's


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
        LockLostError: the folder is no longer this run's; what is committed stays.
    """
    spec = spec.absolute()  # workers have working directories of their own
    run = Run(spec.output.path, frozen.fingerprint(spec))
    with only_writer(spec.output.path, progress.status) as check:
        plan = frozen.read(run, spec)
        if plan is not None and not again.wanted and finished(run, plan):
            clean(run)
            return report(spec, run, plan, run.committed(), 0.0, progress.notes)
        if plan is not None and again.watch_seconds is not None:
            again = replace(again, extend=True)
        source = _list(spec, again, progress) if plan is None or again.extend else None
        encoder = _encoder(spec, plan, source)
        if encoder is not None:
            encoder.fetch()
            for line in encoder.warnings():
                progress.note(line, style="bold yellow")
        progress.status("starting Ray ...")
        with connected(spec.ray.address) as room:
            job = _Job(spec, run, encoder, room, progress, check)
            while True:
                begun = time.monotonic()
                plan = _plan(job, plan, source, again)
                before = run.committed()
                workers = _work(job, plan, before)
                publish(spec, run, plan, check)
                done = report(spec, run, plan, before, time.monotonic() - begun, progress.notes, workers)
                if again.watch_seconds is None:
                    return done
                progress.status(f"{done.clips:,} clips of {done.inputs:,} inputs; watching ...")
                time.sleep(again.watch_seconds)
                check()
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


def _plan(job: _Job, plan: FrozenPlan | None, source: frozen.Source | None, again: Again) -> FrozenPlan:
    """The job's plan as it is to be carried out now; what is new to it is in its folder by then."""
    spec, run, progress = job.spec, job.run, job.progress
    durations = partial(probe_durations, limits=spec.limits)
    if spec.input.identity == "content" and source is not None:
        source = frozen.hashed(source, hash_contents)
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


def _work(job: _Job, plan: FrozenPlan, committed: Collection[int]) -> dict[str, int]:
    """Run the units that are not committed; gives {stage: workers}."""
    spec, run, progress = job.spec, job.run, job.progress
    pending, most_items = generations.write_pending(run, plan.generations, committed)
    if not pending:
        return {}
    pools = placement.pools(spec, run, job.encoder, placement.cutting(spec, plan), job.room, pending)
    for note in placement.check(spec, pools, job.room):
        progress.note(note)
    failed = len(failed_inputs(live_failures(run, committed, generations.void(run.place, plan.generations))))
    least = spec.model.batch_views if isinstance(spec, EmbedSpec) else 0
    standing = Standing()
    progress.start(plan.units, plan.units - pending, standing)
    try:
        store_bytes, patience = spec.resources.object_store_bytes, _patience(spec, most_items)
        for receipt in run_pools(run.place / generations.PENDING, pools, store_bytes, patience, standing):
            job.check()
            failed += receipt.failed_inputs
            progress.advance(receipt)
            if (receipt.batch_views or least) < least:
                least = receipt.batch_views or least
                progress.note(f"out of memory on a GPU: batches of {least} views from now on", style="yellow")
            refuse_failures(spec, plan, failed)
    finally:
        progress.stop()
    return placement.workers(pools)


def _patience(spec: ShardSpec | EmbedSpec, most_items: int) -> Patience:
    """One input of a unit may take all of its time in each attempt, the others ITEM_SECONDS on an average."""
    wait_seconds = spec.ray.wait_seconds
    worst_seconds = spec.failure.attempts * longest_seconds(spec.limits.timeout_seconds)
    return Patience(wait_seconds, worst_seconds + most_items * ITEM_SECONDS + wait_seconds)
