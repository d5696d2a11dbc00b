"""What a spec wants of a cluster that is made for it: kinds of nodes, how many of each, and their labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.recipe import TrainWorkers
from jobs.spec import ClusterSpec, EmbedSpec, EvaluateSpec, ShardSpec, TrainSpec, Workers
from pipeline.errors import SpecError

# What a node is given besides what its workers ask for.
GIB_PER_CPU, GIB_PER_GPU, CPUS_PER_GPU = 2, 16, 4


@dataclass(frozen=True)
class Shape:
    """The most that a node has."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Group:
    """Like nodes for like workers: how many, and what each has."""

    name: str
    nodes: int
    cpus: int
    gpus: int
    labels: Mapping[str, str]

    @property
    def memory_gib(self) -> int:
        return self.cpus * GIB_PER_CPU + self.gpus * GIB_PER_GPU


def portable(spec: ClusterSpec) -> list[tuple[str, str]]:
    """The field and the value of every path of a spec that is to run on a cluster of its own.

    Raises:
        SpecError: a path is relative, or the spec names another cluster.
    """
    if spec.ray.address is not None:
        problem = "a rendered job runs on a cluster of its own; leave it out (--set ray.address=null)"
        raise SpecError("ray.address", spec.ray.address, problem)
    return _full_paths(spec)


def _full_paths(spec: ClusterSpec) -> list[tuple[str, str]]:
    """The field and the value of every path in a spec.

    Raises:
        SpecError: one is relative, which means nothing elsewhere.
    """
    paths: list[tuple[str, str | None]] = [("output.path", spec.output.path)]
    if isinstance(spec, TrainSpec | EvaluateSpec):
        paths += [(f"data.{name}.{one.source}", one.path) for name, one in spec.data.items()]
    if isinstance(spec, TrainSpec):
        tests = spec.validation.data.items()
        paths += [(f"validation.data.{name}.{one.source}", one.path) for name, one in tests]
    if isinstance(spec, ShardSpec | EmbedSpec):
        several = spec.input.path if isinstance(spec.input.path, tuple) else (spec.input.path,)
        paths += [("input", path) for path in (*several, spec.input.shards)]
        paths.append(("input.root", spec.input.root))
    if not isinstance(spec, ShardSpec):
        paths.append(("model.checkpoint", spec.model.checkpoint))
    found = [(field, path) for field, path in paths if path is not None]
    for field, path in found:
        if "://" not in path and not Path(path).is_absolute():
            raise SpecError(
                field, path, "a relative path means nothing on a cluster; give a URI or a full path"
            )
    return found


def groups(spec: ClusterSpec, shape: Shape) -> list[Group]:
    """The nodes for a spec of `placed`: a group for each kind of worker, none larger than `shape`.

    Raises:
        SpecError: it does not say how many workers, or one of them is larger than a node.
    """
    if isinstance(spec, TrainSpec | EvaluateSpec):
        asked = spec.resources
        found = [_group(spec.kind, "resources", asked.most, asked.cpus, asked.gpus or 0, asked.labels, shape)]
        if isinstance(spec, TrainSpec) and spec.decodes:
            decoding, field = spec.resources.decode, "resources.decode"
            found.append(_group("decode", field, decoding.actors, 1.0, 0, decoding.labels, shape))
        return found
    decode, embed = spec.resources.decode, spec.resources.embed
    found = []
    if spec.input.shards is None:
        cpus, field = decode.cpus or 1.0, "resources.decode"
        found.append(_group("decode", field, decode.most, cpus, decode.share, decode.labels, shape))
    if isinstance(spec, EmbedSpec):
        cpus, field = embed.cpus or 0.0, "resources.embed"
        found.append(_group("embed", field, embed.most, cpus, embed.gpus or 0, embed.labels, shape))
    return found


def _group(
    name: str,
    field: str,
    workers: int | None,
    cpus: float,
    gpus: float,
    labels: Mapping[str, str],
    shape: Shape,
) -> Group:
    if workers is None:
        problem = "nodes are made for workers here: say how many, for example 8"
        raise SpecError(f"{field}.actors", None, problem)
    for what, each, most in (("cpus", cpus, shape.cpus), ("gpus", gpus, shape.gpus)):
        if each > most:
            problem = f"a worker does not fit a node of {most} {what}; ask for larger ones by --node-{what}"
            raise SpecError(f"{field}.{what}", each, problem)
    room = [int(most / each) for each, most in ((cpus, shape.cpus), (gpus, shape.gpus)) if each]
    together = min([workers, *room])
    devices = math.ceil(together * gpus)
    cores = max(1, math.ceil(together * cpus), CPUS_PER_GPU * devices)
    return Group(name, math.ceil(workers / together), cores, devices, labels)


def placed(spec: ClusterSpec, shape: Shape) -> ClusterSpec:
    """The spec with what it leaves to the cluster filled in: a role for each kind of worker, cores, and GPUs.

    A decoder gets a core; a model gets a GPU, or with gpus: 0 the cores of a node; a training process a GPU.
    """
    resources = spec.resources
    update: dict[str, Any] = {}
    if isinstance(resources, TrainWorkers):
        update = _filled(resources, spec.kind, None, 1.0)
        if isinstance(spec, TrainSpec) and spec.decodes:
            decoding = spec.resources.decode
            labels = decoding.labels or {"role": "decode"}
            update["decode"] = decoding.model_copy(update={"labels": labels})
    else:
        decode, embed = resources.decode, resources.embed
        alone = float(shape.cpus) if embed.gpus == 0 else None
        update["decode"] = decode.model_copy(update=_filled(decode, "decode", 1.0, None))
        update["embed"] = embed.model_copy(update=_filled(embed, "embed", alone, 1.0))
    return spec.model_copy(update={"resources": resources.model_copy(update=update)})


def _filled(
    asked: Workers | TrainWorkers, role: str, cpus: float | None, gpus: float | None
) -> dict[str, Any]:
    return {
        "labels": asked.labels or {"role": role},
        "cpus": cpus if asked.cpus is None else asked.cpus,
        "gpus": gpus if asked.gpus is None else asked.gpus,
    }


def alike(spec: ClusterSpec, nodes: int, shape: Shape) -> Group:
    """So many nodes of one shape, which all workers of a spec share.

    Raises:
        SpecError: two kinds of workers want nodes with labels that no node can have together.
    """
    resources = spec.resources
    kinds = [] if isinstance(spec, EvaluateSpec) else [spec.resources.decode.labels]
    kinds.append(resources.labels if isinstance(resources, TrainWorkers) else resources.embed.labels)
    labels: dict[str, str] = {}
    for wanted in kinds:
        for key, value in wanted.items():
            if labels.setdefault(key, value) != value:
                problem = (
                    f"no node is both {key}={labels[key]} and {key}={value}, as the spec's labels ask for"
                )
                raise SpecError("--nodes", nodes, f"{problem}; leave it out, for nodes of two kinds")
    return Group("worker", nodes, shape.cpus, shape.gpus, labels)
