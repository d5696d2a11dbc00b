"""`kind: shard`: decode a corpus once, into shards that serve every model of the spec."""

from __future__ import annotations

from jobs.room import Room
from jobs.spec import ShardSpec
from pipeline.commits import Run
from pipeline.pools import Pool
from pipeline.stages import Cutting, Shard


def pools(spec: ShardSpec, run: Run, cutting: Cutting, session: str, room: Room) -> list[Pool]:
    """One stage: decoders, one a core, that write what they cut."""
    asked = spec.resources.decode
    cpus = asked.cpus or 1.0
    room = room.where(asked.labels)
    most = room.cpus / cpus if not asked.share else min(room.cpus / cpus, room.gpus / asked.share)
    actors = asked.most or max(1, int(most))
    labels = room.chosen(asked.labels)
    return [Pool(Shard, (run, cutting, session), actors, cpus, asked.share, labels, asked.least)]
