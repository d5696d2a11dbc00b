"""A look at a job's input, and at the machines it would run on: counted, and measured for a while."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pyarrow as pa

from jobs import cluster, frozen, placement
from jobs.apart import Apart
from jobs.embed import Encoder
from jobs.extent import Extent, extent
from jobs.forecast import Figure, Forecast, Stage, counted, exactly, expanded, forecast, total
from jobs.frozen import Source
from jobs.outlook import Outlook
from jobs.pace import embeddings_bytes, pace
from jobs.sample import Part, Sample, header_seconds, measure
from jobs.spec import EmbedSpec, ShardSpec
from pipeline.commits import Run
from pipeline.corpus import Media
from pipeline.parts import PART_BYTES
from pipeline.pools import driver_seconds
from pipeline.shards import ShardReader, meta_fields
from pipeline.stages import Cutting

# Of a run's wall time: until workers have started, and what is done after the last unit; and until those of a
# model have its libraries. Measured on two cores with other work beside it: 4 to 6 s, and 1 to 2 s.
START_SECONDS = 4.5
LIBRARIES_SECONDS = 1.5
MODEL_SECONDS = 300.0  # that making a model, and its first view, may take
META_ROWS = 64  # of shards that are looked at
BUSY = 0.5  # of the cores, by others


def survey(spec: ShardSpec | EmbedSpec, seconds: float) -> Outlook:
    """Look at a job's input and the machines it would run on, and measure for so long; 0 measures nothing.

    Raises:
        SpecError: a run would refuse it; or it could never get its workers.
    """
    spec = spec.absolute()
    run = Run(spec.output.path, frozen.fingerprint(spec))
    begun = frozen.read(run, spec)
    source = frozen.list_source(spec)
    encoder = None
    if isinstance(spec, EmbedSpec):
        encoder = Encoder(spec.model, source.sampling, blank=True)
        encoder.check()
    on_gpus = encoder is not None or spec.resources.decode.share > 0
    room = cluster.room(spec.ray.address, with_gpus=on_gpus)
    cutting = placement.cutting(spec, source)
    with Apart() as apart:
        there = extent(spec, source, lambda uri: header_seconds(cutting, uri, apart))
        pools = placement.pools(spec, run, encoder, cutting, room, there.units)
        found = Outlook(
            job=spec.kind,
            model=spec.model.name if isinstance(spec, EmbedSpec) else None,
            output=spec.output.path,
            fingerprint=run.fingerprint,
            extent=there,
            tokens_per_view={media: source.plans[media].tokens for media in there.views},
            bytes_per_view={media: source.plans[media].bytes_per_clip for media in there.views},
            room=room,
            pools=pools,
            clips=total(there.planned(media) for media in there.views),
            notes=placement.check(spec, pools, room),
        )
        if begun is not None and (done := len(run.committed())):
            found.notes.append(f"{done} of {begun.units} units are done already; this is of all of them")
        if seconds and there.units:
            _measure(found, spec, source, cutting, encoder, seconds, apart)
    return found


def _measure(
    found: Outlook,
    spec: ShardSpec | EmbedSpec,
    source: Source,
    cutting: Cutting,
    encoder: Encoder | None,
    seconds: float,
    apart: Apart,
) -> None:
    """Decode some inputs, time the model, and say what all takes."""
    if found.room.places is not None:
        found.notes.append("measured on this machine: the cluster's may be faster, or slower")
    load = os.getloadavg()[0]
    if load > BUSY * cluster.cores():
        found.notes.append(f"this machine is busy (load {load:.1f}): an idle one is faster")
    if source.corpus is not None:
        if cutting.hardware is not None and not cluster.gpus():
            cutting = replace(cutting, hardware=None)
            found.notes.append("resources.decode.hardware: no GPU here, decoding was measured without")
        share = 1.0 if encoder is None else 0.5
        found.samples = measure(cutting, found.extent.spreads, share * seconds, apart)
        _decoding(found)
    metas = [part.meta for sample in found.samples.values() for part in sample.parts if part.meta is not None]
    if encoder is not None:
        _model(found, encoder, seconds if source.corpus is None else seconds / 2, apart)
        if found.pace is not None and (metas or source.shards):
            row_bytes, file_bytes = embeddings_bytes(
                pa.concat_tables(metas) if metas else _stored(source), found.pace.dim
            )
            rows = found.clips.times(row_bytes)
            files = exactly(float(file_bytes * max(1, round(rows.value / PART_BYTES))))
            found.output_bytes = total([rows, files])
    _time(found)


def _decoding(found: Outlook) -> None:
    """From the sampled inputs of each medium to all of them."""
    there = found.extent
    for media, sample in found.samples.items():
        if sample.unfinished:
            found.notes.append(
                f"{sample.unfinished} sampled {media} was not done in time and is left out: decoding may "
                "take longer than is said here; give more --seconds"
            )
        if not sample.parts:
            found.notes.append(f"no {media} was decoded in the time there was; give more --seconds")
    if not all(sample.parts for sample in found.samples.values()):
        found.samples = {}
        return

    planned = {media: _planned(there, media, sample) for media, sample in found.samples.items()}

    def of_all(amount: Callable[[Part], float]) -> Figure:
        return total(
            expanded(sample.sizes(), sample.amounts(amount), planned[media], sample.population)
            for media, sample in found.samples.items()
        )

    def views(part: Part) -> float:
        return part.views

    given, most = of_all(views), total(planned.values()).high
    high = given.high if most is None or given.high is None else max(given.value, min(given.high, most))
    found.clips = Figure(given.value, given.low, high)
    found.decode_seconds = of_all(lambda part: part.seconds)
    found.decode_cpu_seconds = of_all(lambda part: part.cpu_seconds)
    parts = [part for sample in found.samples.values() for part in sample.parts]
    peak = max(part.peak_memory_bytes for part in parts)
    if found.job == "shard":
        found.output_bytes = of_all(lambda part: part.file_bytes)
    else:
        peak += 2 * there.largest_unit_bytes  # what it sends on, in a buffer that doubles as it grows
    found.peak_memory_bytes[found.pools[0].stage.__name__.lower()] = peak


def _planned(there: Extent, media: Media, sample: Sample) -> Figure:
    """Views by headers: of the inputs that were sampled, if these are more than those read before."""
    sizes = sample.sizes()
    if media == "image" or not there.asked or len(sizes) <= len(there.headers):
        return there.planned(media)
    return counted(sizes, sum(sizes) / len(sizes) * sample.inputs, sample.inputs)


def _model(found: Outlook, encoder: Encoder, seconds: float, apart: Apart) -> None:
    """How long it takes for all views, where it can be had on the device that it would run on."""
    pool = found.pools[-1]
    if pool.gpus and not cluster.gpus():
        found.notes.append("the model would run on GPUs, and there is none here: it was not measured")
        return
    wanted = pool.arguments[2]
    threads = min(wanted, cluster.cores())
    if threads < wanted:
        found.notes.append(f"the model was measured with {threads} threads; a worker gets {wanted}")
    views = {
        media: found.extent.batch_views(media, encoder.model.batch_views) for media in found.extent.views
    }
    apart.end()  # a worker's memory is its own
    timed = partial(pace, encoder, threads, views, seconds, on_gpu=bool(pool.gpus))
    try:
        found.pace = apart.ask(MODEL_SECONDS + 2 * seconds, timed)
    except TimeoutError:
        found.notes.append("the model was not measured: a view of it takes minutes here")
        return
    if slow := [media for media in views if found.pace.batch_views[media] < views[media]]:
        timed_on, asked = found.pace.batch_views[slow[0]], views[slow[0]]
        note = f"the model was timed on {timed_on} views at a time, not {asked}, which are faster"
        found.notes.append(f"{note}; give more --seconds")
    shares = {media: count / found.extent.views.total() for media, count in found.extent.views.items()}
    each = {media: found.clips.times(share) for media, share in shares.items()}
    found.model_seconds = total(each[media].times(found.pace.seconds[media]) for media in each)
    found.model_cpu_seconds = total(each[media].times(found.pace.cpu_seconds[media]) for media in each)
    if pool.gpus:
        found.gpu_seconds = found.model_seconds.times(pool.gpus)
    peak = found.pace.peak_memory_bytes + found.extent.largest_unit_bytes
    found.peak_memory_bytes[pool.stage.__name__.lower()] = peak


def _stored(source: Source) -> pa.Table:
    """Some rows of the shards that are read, without their tubes."""
    shards = next(iter(source.shards.values()))
    batch = ShardReader(shards.files[0].location).rows(0, min(META_ROWS, shards.rows_of(0)))
    return pa.Table.from_batches([batch]).select([one.name for one in meta_fields(batch.schema)])


def _time(found: Outlook) -> None:
    """How long it takes with these workers, if all stages were measured."""
    decode = (found.decode_seconds, found.decode_cpu_seconds)
    model = (found.model_seconds, found.model_cpu_seconds)
    wanted = [pair for pair in (decode, model) if pair[0] is not None]
    if len(wanted) < len(found.pools):
        return
    names = [name for name, pair in (("decode", decode), ("model", model)) if pair[0] is not None]

    def of(which: str) -> Forecast:
        stages = []
        for name, (seconds, cpu_seconds), pool in zip(names, wanted, found.pools, strict=True):
            assert seconds is not None
            assert cpu_seconds is not None
            ends = [getattr(one, which) for one in (seconds, cpu_seconds)]
            cores = found.room.where(pool.labels).cpus
            stages.append(Stage(name, ends[0], ends[1], pool.actors, cores))
        handing_out = driver_seconds(found.extent.units, max(pool.actors for pool in found.pools))
        stages.append(Stage("driver", handing_out, 0.0, 1, 1.0))
        start = START_SECONDS
        if found.pace is not None:
            start += LIBRARIES_SECONDS + found.pace.start_seconds
        first, last = found.pools[0], found.pools[-1]
        beside = first is not last and not found.room.apart(first.labels, last.labels)
        return forecast(stages, found.extent.units, start, beside=beside)

    found.forecast = of("value")
    known = all(one is not None and one.low is not None for pair in wanted for one in pair)
    low, high = (of(end).wall_seconds for end in ("low", "high")) if known else (None, None)
    found.wall_seconds = Figure(found.forecast.wall_seconds, low, high)
