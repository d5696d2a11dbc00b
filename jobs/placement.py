"""Which workers a job gets, and whether they can ever start: the same for a run and for its plan."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jobs import embed, shard
from jobs.embed import Encoder
from jobs.frozen import FrozenPlan, Source
from jobs.room import Node, Room, written
from jobs.spec import EmbedSpec, ShardSpec
from pipeline.commits import Run
from pipeline.errors import SpecError
from pipeline.pools import Pool, most_actors
from pipeline.rows import BATCH_ROWS
from pipeline.stages import Cutting

# What a core cuts of tubes: 10 clips of TubeViT-B a second, 720p H.264 (benchmarks.decode).
DECODED_BYTES_PER_SECOND = 10 * 583_680
ROUNDING = 1e-9  # ten workers of a tenth of a GPU fit on one


def cutting(spec: ShardSpec | EmbedSpec, plan: FrozenPlan | Source) -> Cutting:
    """What decoders need to know of a job."""
    batch_rows = spec.model.batch_views if isinstance(spec, EmbedSpec) else BATCH_ROWS
    return Cutting(
        plan.root,
        plan.sampling,
        dict(plan.plans),
        plan.extra,
        spec.failure.attempts,
        batch_rows,
        spec.limits,
        spec.resources.decode.hardware,
        spec.input.identity,
    )


def pools(
    spec: ShardSpec | EmbedSpec,
    run: Run,
    encoder: Encoder | None,
    cutting: Cutting,
    room: Room,
    units: int | None = None,
) -> list[Pool]:
    """The job's stages in order, as many workers each as there is room for, or as the spec wants.

    Args:
        units: that there are to do: none needs more workers than that; None if that is not known.
    """
    session = uuid.uuid4().hex
    if isinstance(spec, ShardSpec):
        found = shard.pools(spec, run, cutting, session, room)
    else:
        assert encoder is not None
        found = embed.pools(spec, run, encoder, cutting, session, room)
    if spec.input.shards is None and spec.resources.decode.actors is None:
        found[0] = replace(found[0], actors=min(found[0].actors, _led(spec)))
    return found if units is None else [_at_most(pool, units) for pool in found]


def _led(spec: ShardSpec | EmbedSpec) -> int:
    """So many decoders one driver can lead."""
    return most_actors(spec.output.unit_bytes / DECODED_BYTES_PER_SECOND)


def _at_most(pool: Pool, actors: int) -> Pool:
    least = None if pool.least is None else min(pool.least, actors)
    return replace(pool, actors=min(pool.actors, actors), least=least)


def workers(pools: Sequence[Pool]) -> dict[str, int]:
    """{stage: how many}, as progress and reports name them."""
    return {pool.stage.__name__.lower(): pool.actors for pool in pools}


def check(spec: ShardSpec | EmbedSpec, pools: Sequence[Pool], room: Room) -> list[str]:
    """What to say of workers that have to wait for their place, or are fewer than there is room for.

    Raises:
        SpecError: some can never start; they would be waited for without end.
    """
    notes = [
        note for pool in pools if (note := room.missing(f"resources.{_field(pool)}.labels", pool.labels))
    ]
    if spec.resources.decode.actors is None and pools[0].stage is not embed.Embed:
        most, where = _led(spec), room.where(pools[0].labels)
        if pools[0].actors == most < int(where.cpus / pools[0].cpus):
            units = f"units of {spec.output.unit_bytes >> 20} MiB"
            notes.append(f"{most} decoders: one driver leads no more with {units} (output.unit_bytes)")
    named = {written(pool.labels): pool.labels for pool in pools if room.has(pool.labels)}
    for labels in ({}, *named.values()):
        notes += _together([pool for pool in pools if labels in ({}, pool.labels)], labels, room)
    return notes + [note for pool in pools if (note := _alone(pool, room))]


def _together(pools: Sequence[Pool], labels: Mapping[str, str], room: Room) -> list[str]:
    """What all workers of some nodes ask for, against what these have."""
    here, notes = room.where(labels), []
    where = f" with {written(labels)}" if labels else ""
    for what, asked, there in (
        ("cpus", sum((pool.least or pool.actors) * pool.cpus for pool in pools), here.cpus),
        ("gpus", sum((pool.least or pool.actors) * pool.gpus for pool in pools), here.gpus),
    ):
        if asked > there and room.may_grow:
            wanted = f"workers want {asked:g} {what}{where}, it has {there:g}"
            notes.append(f"waiting for the cluster to grow: {wanted}")
        elif asked > there:
            place = f"nodes{where} have" if where else "this machine has"
            problem = f"{place} {there:g}; ask for fewer actors, or for less for each"
            raise SpecError(f"resources (actors x {what})", asked, problem)
    return notes


def _alone(pool: Pool, room: Room) -> str | None:
    """What to say if single nodes are too small for the workers of a pool, however many nodes there are."""
    nodes = [node for node in room.places or () if node.has(pool.labels)]
    if not nodes:  # a machine alone; or none has these labels, which is told already
        return None
    where = f" with {written(pool.labels)}" if pool.labels else ""
    places = sum(_places(pool, node) for node in nodes)
    if places >= (pool.least or pool.actors):
        return None
    if not places:
        what = "cpus" if all(node.cpus < pool.cpus for node in nodes) else "gpus"
        most = max(getattr(node, what) for node in nodes)
        asked, problem = getattr(pool, what), f"no node{where} has more than {most:g}"
        if room.may_grow:
            return f"waiting for the cluster to grow: a worker wants {asked:g} {what}, {problem}"
        raise SpecError(f"resources.{_field(pool)}.{what}", asked, f"{problem}; ask for less")
    if room.may_grow:
        return None  # what they want in all is compared below
    each = " and ".join(f"{n:g} {what}" for n, what in ((pool.cpus, "cpus"), (pool.gpus, "gpus")) if n)
    some = f"{places} of {pool.least or pool.actors} workers of {_field(pool)}"
    return f"only {some} fit: each wants {each} on one node{where}"


def _places(pool: Pool, node: Node) -> int:
    """How many workers of a pool a node has room for."""
    wants = ((node.cpus, pool.cpus), (node.gpus, pool.gpus))
    return min((math.floor(has / asked + ROUNDING) for has, asked in wants if asked), default=pool.actors)


def _field(pool: Pool) -> str:
    """Of `resources`."""
    return "embed" if pool.stage is embed.Embed else "decode"
