"""A job's frozen plan: which units there are, fixed before work starts and found again by a later run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import yaml

from jobs.embed import freeze_shards, open_shards
from jobs.hindsight import KEPT
from jobs.spec import EmbedSpec, ShardSpec, difference, dump, load
from pipeline import generations
from pipeline.commits import Run
from pipeline.corpus import Corpus, Media, read_corpus
from pipeline.errors import SpecError, SpecListError
from pipeline.generations import Generation
from pipeline.plan import Plan
from pipeline.sampling import Sampling
from pipeline.shards import ShardSet, shard_schema
from pipeline.storage import locate, write_atomic
from pipeline.tables import KNOWN
from pipeline.units import PLANNED, pack

SPEC = "spec.yaml"

Durations = Callable[[str, pa.Table], Iterable[float | None]]


@dataclass(frozen=True)
class Source:
    """A job's input, listed but not frozen: a corpus, or shard sets."""

    root: str
    sampling: Sampling
    plans: Mapping[Media, Plan]
    corpus: Corpus | None
    shards: Mapping[Media, ShardSet]

    @property
    def extra(self) -> tuple[pa.Field, ...]:
        """The caller's own columns."""
        corpus = self.corpus
        return () if corpus is None else tuple(corpus.schema.field(name) for name in corpus.extra)


@dataclass(frozen=True)
class FrozenPlan:
    """The units of a job, which lie in its folder, and what holds for all of them."""

    generations: list[Generation]
    root: str
    sampling: Sampling
    plans: dict[Media, Plan]
    items: pa.StructType

    @property
    def units(self) -> int:
        return sum(generation.units for generation in self.generations)

    @property
    def inputs(self) -> int:
        return sum(generation.inputs for generation in self.generations)

    @property
    def extra(self) -> tuple[pa.Field, ...]:
        """The caller's own columns."""
        return tuple(field for field in self.items if field.name not in {*KNOWN, *PLANNED})


def fingerprint(spec: ShardSpec | EmbedSpec) -> str:
    """Names everything that a job's output depends on, apart from the bytes of its inputs."""
    identity = spec.identity()
    if isinstance(spec, ShardSpec):
        identity["plan"] = spec.plans()["video"].digest
    else:
        identity["weights"] = _weights(spec)
        if spec.input.shards is not None:
            manifest = locate(spec.input.shards, "input.shards") / "manifest.json"
            identity["shards"] = (
                hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else None
            )
        if spec.sampling is not None:
            identity["plan"] = spec.model.plans(spec.sampling)["video"].digest
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def list_source(spec: ShardSpec | EmbedSpec, *, may_be_empty: bool = False) -> Source:
    """Look at the input; SpecError if there is none, or none that this job can use."""
    if isinstance(spec, EmbedSpec) and spec.input.shards is not None:
        sets = open_shards(spec)
        plans = {media: shards.plan for media, shards in sets.items()}
        return Source(spec.input.shards, next(iter(sets.values())).sampling, plans, None, sets)
    assert spec.input.path is not None
    assert spec.sampling is not None
    corpus = read_corpus(spec.input.path, spec.input.root, may_be_empty=may_be_empty)
    plans = spec.plans() if isinstance(spec, ShardSpec) else spec.model.plans(spec.sampling)
    shard_schema(plans["video"], spec.sampling, [corpus.schema.field(name) for name in corpus.extra])
    return Source(corpus.root, spec.sampling, plans, corpus, {})


def hashed(source: Source, contents: Callable[[str, pa.Table], list[str | None]]) -> Source:
    """The same with versions that `contents(root, inputs)` tells."""
    if source.corpus is None:
        return source
    corpus = source.corpus

    def chunks() -> Iterator[pa.Table]:
        for chunk in corpus.chunks:
            versions = pa.array(contents(corpus.root, chunk), pa.string())
            yield chunk.set_column(chunk.column_names.index("version"), "version", versions)

    return replace(source, corpus=replace(corpus, chunks=chunks()))


def units_of(spec: ShardSpec | EmbedSpec, source: Source, durations: Durations) -> Iterator[pa.Table]:
    """The units of an input. `durations(root, inputs)` is asked only where clips are sliding windows."""
    if source.corpus is None:
        yield freeze_shards(source.root, source.shards, spec.output.unit_bytes)
    else:
        yield from packed(spec, source.corpus.chunks, source, durations)


def packed(
    spec: ShardSpec | EmbedSpec,
    chunks: Iterable[pa.Table],
    plan: Source | FrozenPlan,
    durations: Durations,
) -> Iterator[pa.Table]:
    """The units of some inputs of a job."""

    def seconds(inputs: pa.Table) -> Iterable[float | None]:
        return durations(plan.root, inputs)

    yield from pack(chunks, plan.sampling, plan.plans, spec.output.unit_bytes, seconds)


def freeze(run: Run, spec: ShardSpec | EmbedSpec, source: Source, durations: Durations) -> FrozenPlan:
    """Put the first generation of the plan into the run's folder, then the spec, which makes it this job's.

    Raises:
        SpecError: something is wrong with the input.
    """
    settings = {
        "fingerprint": run.fingerprint,
        "root": source.root,
        "sampling": source.sampling.model_dump(mode="json"),
        "plans": {media: plan.model_dump(mode="json") for media, plan in source.plans.items()},
    }
    if generations.write(run, (), units_of(spec, source, durations), settings) is None:
        raise SpecError("input.path", spec.input.path, "no video or image in it")
    write_atomic(run.place / SPEC, dump(spec).encode())
    frozen = read(run, spec)
    assert frozen is not None
    return frozen


def read(run: Run, spec: ShardSpec | EmbedSpec) -> FrozenPlan | None:
    """The frozen plan that an earlier run of this job left in the folder; None if it is new.

    Raises:
        SpecError: the folder holds something else.
    """
    place = run.place
    if not (place / SPEC).exists():
        strangers = [i.base_name for i in place.files() if i.base_name[0] != "." and i.base_name != KEPT]
        if strangers:
            raise SpecError(
                "output.path", run.uri, f"holds other files ({strangers[0]}); choose a new folder"
            )
        return None
    old = load(yaml.safe_load((place / SPEC).read_bytes()))
    changed = list(difference(old.identity(), spec.identity()))
    if changed:
        shown = "; ".join(changed[:3]) + ("; ..." if len(changed) > 3 else "")
        raise SpecError("output.path", run.uri, f"belongs to another spec ({shown}); choose a new folder")
    found = generations.read(place)
    if not found:
        raise SpecError(
            "output.path", run.uri, "its plan is missing or of an older version; choose a new folder"
        )
    settings: dict[str, Any] = found[0].settings
    if settings["fingerprint"] != run.fingerprint:
        raise SpecError(
            "output.path",
            run.uri,
            "was written with other weights or shards, or by another version of the plan",
        )
    plans = {media: Plan.model_validate_json(json.dumps(plan)) for media, plan in settings["plans"].items()}
    sampling = Sampling.model_validate_json(json.dumps(settings["sampling"]))
    items = generations.items_schema(place, found[0])
    return FrozenPlan(found, settings["root"], sampling, plans, items)


def _weights(spec: EmbedSpec) -> str:
    from models import weights  # imports torch, which a shard job does without

    try:
        model = spec.model
        return weights.identity(
            model.name,
            clip=model.clip,
            init=model.init,
            tubes_from=model.tubes_from,
            checkpoint=model.saved,
        )
    except (ValueError, OSError) as error:
        raise SpecListError([str(error)]) from None
