"""A job's frozen plan: which units there are, fixed before work starts and found again by a later run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from jobs.embed import freeze_shards, open_shards
from jobs.spec import EmbedSpec, ShardSpec, difference, dump, load, media_plans
from pipeline.commits import Run
from pipeline.corpus import Corpus, Media, freeze, read_corpus
from pipeline.errors import SpecError, SpecListError
from pipeline.plan import Plan
from pipeline.sampling import Sampling
from pipeline.shards import ShardSet, shard_schema
from pipeline.storage import atomic_file, locate, write_atomic
from pipeline.tables import KNOWN

PLAN = "plan.parquet"
PENDING = "pending.parquet"
SPEC = "spec.yaml"
METADATA = b"tubelet.frozen"

Durations = Callable[[str, pa.Table], Iterable[float | None]]


@dataclass(frozen=True)
class Source:
    """A job's input, listed but not frozen: a corpus, or shard sets."""

    corpus: Corpus | None
    shards: dict[Media, ShardSet] | None


@dataclass(frozen=True)
class FrozenPlan:
    """The units of a job, in order, and what holds for all of them."""

    units: pa.Table
    root: str
    inputs: int
    sampling: Sampling
    plans: dict[Media, Plan]

    @property
    def clips(self) -> int:
        return sum(self.units["clips"].to_pylist())

    @property
    def extra(self) -> tuple[pa.Field, ...]:
        """The caller's own columns."""
        item = self.units.schema.field("items").type.value_type
        known = {*KNOWN, "first_clip", "stop_clip", "first_row", "stop_row"}
        return tuple(field for field in item if field.name not in known)


def fingerprint(spec: ShardSpec | EmbedSpec) -> str:
    """Names everything that a job's output depends on, apart from the bytes of its inputs."""
    identity = spec.identity()
    if isinstance(spec, ShardSpec):
        identity["plan"] = spec.plan().digest
    else:
        identity["weights"] = _weights(spec)
        if spec.input.shards is not None:
            manifest = locate(spec.input.shards, "input.shards") / "manifest.json"
            identity["shards"] = (
                hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else None
            )
        if spec.sampling is not None:
            identity["plan"] = spec.model.plan(spec.sampling).digest
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def list_source(spec: ShardSpec | EmbedSpec) -> Source:
    """Look at the input; SpecError if there is none, or none that this job can use."""
    if isinstance(spec, EmbedSpec) and spec.input.shards is not None:
        return Source(None, open_shards(spec))
    assert spec.input.path is not None
    corpus = read_corpus(spec.input.path, spec.input.root)
    plan = spec.plan() if isinstance(spec, ShardSpec) else spec.model.plan(_sampling(spec))
    shard_schema(plan, _sampling(spec), [corpus.inputs.schema.field(name) for name in corpus.extra])
    return Source(corpus, None)


def freeze_source(spec: ShardSpec | EmbedSpec, source: Source, durations: Durations) -> FrozenPlan:
    """Fix the units. `durations(root, inputs)` is asked only where clips are sliding windows."""
    if source.shards is not None:
        assert spec.input.shards is not None
        units = freeze_shards(spec.input.shards, source.shards, spec.output.unit_bytes)
        first = next(iter(source.shards.values()))
        plans = {media: shards.plan for media, shards in source.shards.items()}
        rows = sum(len(shards) for shards in source.shards.values())
        return FrozenPlan(units, spec.input.shards, rows, first.sampling, plans)
    assert source.corpus is not None
    corpus, sampling = source.corpus, _sampling(spec)
    plan = spec.plan() if isinstance(spec, ShardSpec) else spec.model.plan(sampling)
    plans = media_plans(plan)
    units = freeze(
        corpus, sampling, plans, spec.output.unit_bytes, lambda inputs: durations(corpus.root, inputs)
    )
    return FrozenPlan(units, corpus.root, corpus.inputs.num_rows, sampling, plans)


def write(run: Run, spec: ShardSpec | EmbedSpec, frozen: FrozenPlan) -> None:
    """Put the plan into the run's folder, then the spec, which makes the folder this job's."""
    values = {
        "fingerprint": run.fingerprint,
        "root": frozen.root,
        "inputs": frozen.inputs,
        "sampling": frozen.sampling.model_dump(),
        "plans": {media: plan.model_dump() for media, plan in frozen.plans.items()},
    }
    _write_units(run, PLAN, frozen.units.replace_schema_metadata({METADATA: json.dumps(values)}))
    write_atomic(run.place / SPEC, dump(spec).encode())


def read(run: Run, spec: ShardSpec | EmbedSpec) -> FrozenPlan | None:
    """The frozen plan that an earlier run of this job left in the folder; None if it is new.

    Raises:
        SpecError: the folder holds something else.
    """
    place = run.place
    if not (place / SPEC).exists():
        ours = {".lock", PLAN}
        strangers = [i.base_name for i in place.files() if i.base_name not in ours and i.base_name[0] != "."]
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
    with place.filesystem.open_input_file((place / PLAN).path) as file:
        units = pq.read_table(file)
    values = json.loads(units.schema.metadata[METADATA])
    if values["fingerprint"] != run.fingerprint:
        raise SpecError(
            "output.path", run.uri, "was written with other weights, or by another version of the plan"
        )
    plans = {media: Plan.model_validate_json(json.dumps(plan)) for media, plan in values["plans"].items()}
    sampling = Sampling.model_validate_json(json.dumps(values["sampling"]))
    return FrozenPlan(units.replace_schema_metadata(None), values["root"], values["inputs"], sampling, plans)


def write_pending(run: Run, frozen: FrozenPlan) -> int:
    """Write the units that are not committed, for Ray to read; returns how many there are."""
    done = pa.array(sorted(run.committed()), pa.int64())
    pending = frozen.units.filter(pc.invert(pc.is_in(frozen.units["unit"], done)))
    _write_units(run, PENDING, pending)
    return pending.num_rows


def remove_pending(run: Run) -> None:
    if (run.place / PENDING).exists():
        (run.place / PENDING).delete()


def _write_units(run: Run, name: str, units: pa.Table) -> None:
    with atomic_file(run.place / name) as sink:
        pq.write_table(units, sink, row_group_size=256)


def _sampling(spec: ShardSpec | EmbedSpec) -> Sampling:
    assert spec.sampling is not None
    return spec.sampling


def _weights(spec: EmbedSpec) -> str:
    from models import weights  # imports torch, which a shard job does without

    try:
        return weights.identity(spec.model.name, clip=spec.model.clip, checkpoint=spec.model.checkpoint)
    except (ValueError, OSError) as error:
        raise SpecListError([str(error)]) from None
