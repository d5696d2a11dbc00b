"""Job specs: what a YAML file may say, checked field by field before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from jobs.environment import Cluster
from jobs.folder import Folder
from jobs.mistakes import explain
from jobs.model import Architecture, Model, absolute
from jobs.overrides import overridden
from jobs.questions import ProbeSpec
from jobs.recipe import Learning, Testing
from jobs.room import Labels
from pipeline.corpus import Media
from pipeline.errors import SpecError, SpecListError
from pipeline.limits import Hardware, Limits
from pipeline.plan import Frozen, Plan
from pipeline.sampling import Sampling
from pipeline.storage import Identity


class Input(Frozen):
    """What to read: `path`, a folder, glob, file, list of these, or table (see pipeline.corpus); or `shards`.

    root: where relative uris of a table start; the table's folder by default.
    shards: the output folder of a `kind: shard` run.
    identity: by what an input is known again: its size and when it was modified, or a hash of its content,
        for which it is read once more when it is listed and when it is decoded.
    """

    path: str | tuple[str, ...] | None = None
    root: str | None = None
    shards: str | None = None
    identity: Identity = "modified"

    @model_validator(mode="after")
    def _one(self) -> Self:
        if not self.path and self.path is not None:
            raise ValueError("path is empty; name a folder, a glob, a file, a list of these, or a table")
        if (self.path is None) == (self.shards is None):
            raise ValueError("give either path (videos and images) or shards (a run's output folder)")
        return self


class Output(Frozen):
    """path: the run's folder. unit_bytes: tubes in one unit of work, and so in one shard."""

    path: Annotated[str, Field(min_length=1)]
    unit_bytes: PositiveInt = 64 << 20


class Workers(Frozen):
    """Workers of a stage; None is what the cluster has room for, and one driver can lead.

    actors: how many; (least, most) begins with the least, and goes by the work and the room that there are.
    labels: of the cluster's nodes that they run on; a machine alone has no such choice.
    """

    actors: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    cpus: PositiveFloat | None = None
    gpus: NonNegativeFloat | None = None
    labels: Labels = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if isinstance(self.actors, tuple) and self.actors[0] > self.actors[1]:
            raise ValueError(f"actors = {self.actors}: the least number comes first")
        return self

    @property
    def least(self) -> int | None:
        """None unless `actors` is a range."""
        return self.actors[0] if isinstance(self.actors, tuple) else None

    @property
    def most(self) -> int | None:
        return self.actors[1] if isinstance(self.actors, tuple) else self.actors


class DecodeWorkers(Workers):
    """hardware: "cuda" decodes on a GPU (NVDEC) what that can; a worker's share is `gpus`, or a tenth."""

    hardware: Hardware | None = None

    @property
    def share(self) -> float:
        """Of a GPU, for each worker."""
        return self.gpus or (0.1 if self.hardware is not None else 0.0)


class Resources(Frozen):
    """object_store_bytes: what may wait between decoding and the model; None is half of Ray's object store.

    With n decoders and m models 2 n + 3 m units (output.unit_bytes each) wait at most, in any case.
    """

    decode: DecodeWorkers = DecodeWorkers()
    embed: Workers = Workers()
    object_store_bytes: PositiveInt | None = None


class FailurePolicy(Frozen):
    """max_failed_fraction: more failed inputs than this end the job.

    attempts: how often an input is tried that takes its decoder process down or makes it hang.
    """

    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 1.0
    attempts: PositiveInt = 3


class _Job(Frozen):
    version: Literal[1]
    input: Input
    output: Output
    resources: Resources = Resources()
    limits: Limits = Limits()
    failure: FailurePolicy = FailurePolicy()
    ray: Cluster = Cluster()

    def absolute(self) -> Self:
        """The same job with paths that mean the same in every process of this machine."""
        paths = self.input.path
        given = {
            "path": tuple(map(absolute, paths)) if isinstance(paths, tuple) else absolute(paths),
            "root": absolute(self.input.root),
            "shards": absolute(self.input.shards),
        }
        return self.model_copy(
            update={
                "input": self.input.model_copy(update=given),
                "output": self.output.model_copy(update={"path": absolute(self.output.path)}),
            }
        )

    def identity(self) -> dict[str, Any]:
        """What the output depends on: a run's folder takes no other spec than one with the same identity."""
        values = self.model_dump(mode="json", exclude={"resources", "limits", "failure", "ray"})
        del values["output"]["path"]
        return values


class ShardSpec(_Job):
    """Decode a corpus once into shards that serve every listed model."""

    kind: Literal["shard"]
    sampling: Sampling = Sampling()
    models: Annotated[tuple[Architecture, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _videos(self) -> Self:
        if self.input.path is None:
            raise ValueError("a shard job reads videos: give input.path")
        return self

    def plans(self) -> dict[Media, Plan]:
        """What serves every model; an image those that take any."""
        merged: dict[Media, Plan] = {}
        for model in self.models:
            for media, plan in model.plans(self.sampling).items():
                merged[media] = merged[media].union(plan) if media in merged else plan
        return merged


class EmbedSpec(_Job):
    """Embed every view of a corpus, from videos or from shards."""

    kind: Literal["embed"]
    sampling: Sampling | None = None
    model: Model

    def absolute(self) -> Self:
        return super().absolute().model_copy(update={"model": self.model.absolute()})

    @model_validator(mode="after")
    def _sampled_once(self) -> Self:
        if self.input.shards is not None and self.sampling is not None:
            raise ValueError("shards are sampled already: leave sampling out, or give input.path")
        if self.input.shards is None and self.sampling is None:
            object.__setattr__(self, "sampling", Sampling())
        return self


class Restarts(Frozen):
    """max_failures: how often workers may be lost; training goes on from its last checkpoint."""

    max_failures: NonNegativeInt = 3


class _Together(Frozen):
    """What jobs have in common whose processes work together."""

    version: Literal[1]
    output: Folder
    failure: Restarts = Restarts()
    ray: Cluster = Cluster()


class TrainSpec(Learning, _Together):
    """Train a model on shards, or on videos; see jobs.recipe for what may be said of it."""

    kind: Literal["train"]

    def absolute(self) -> Self:
        return super().absolute().model_copy(update={"output": self.output.absolute()})

    def identity(self) -> dict[str, Any]:
        """What the weights depend on."""
        elsewhere = {"resources", "limits", "checkpoints", "strategy", "failure", "ray", "output", "logs"}
        values = self.model_dump(mode="json", exclude=elsewhere)
        return {**values, "shares": self.shares()}


class EvaluateSpec(Testing, _Together):
    """Test a trained model on shards; nothing of it is kept but the numbers."""

    kind: Literal["evaluate"]

    def absolute(self) -> Self:
        return super().absolute().model_copy(update={"output": self.output.absolute()})

    def identity(self) -> dict[str, Any]:
        """What the numbers depend on."""
        return self.model_dump(mode="json", exclude={"resources", "failure", "ray", "output"})


ClusterSpec = ShardSpec | EmbedSpec | TrainSpec | EvaluateSpec  # whose work Ray shares out
JobSpec = ClusterSpec | ProbeSpec
KINDS: dict[str, type[Frozen]] = {
    "shard": ShardSpec,
    "embed": EmbedSpec,
    "train": TrainSpec,
    "evaluate": EvaluateSpec,
    "probe": ProbeSpec,
}
_SPEC: TypeAdapter[JobSpec] = TypeAdapter(Annotated[JobSpec, Field(discriminator="kind")])


def load(source: str | Path | Mapping[str, Any], overrides: tuple[str, ...] = ()) -> JobSpec:
    """Read and check a spec.

    Args:
        source: a YAML file, or what it would hold.
        overrides: "a.b=value" each, the value in YAML; they win over the file.

    Raises:
        SpecError: a line for each thing that is wrong.
    """
    values: Any
    if isinstance(source, Mapping):
        values = dict(source)
    else:
        try:
            values = yaml.safe_load(Path(source).expanduser().read_text())
        except OSError as error:
            raise SpecError("spec", str(source), f"cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SpecError("spec", str(source), f"not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise SpecError("spec", str(source), "holds no keys; see jobs/specs for examples")
    for override in overrides:
        values = overridden(values, override)
    try:
        # By way of JSON, because strict mode takes a JSON list for a tuple, but not a Python one.
        text = json.dumps(values, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError("spec", str(source), f"cannot be written as JSON: {error}") from None
    try:
        return _SPEC.validate_json(text)
    except ValidationError as error:
        raise SpecListError(explain(error, KINDS)) from None


def schema() -> dict[str, Any]:
    """JSON Schema of a spec, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_SPEC.json_schema()}


def dump(spec: JobSpec) -> str:
    """The spec with every default filled in, as YAML."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A line for each field in which two nested mappings differ."""
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from difference(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}: {a!r} there, {b!r} now"
