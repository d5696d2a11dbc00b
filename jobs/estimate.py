"""`tubelet plan`: what a run would do, from its spec and a look at its input. Computes and writes nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from jobs import frozen
from jobs.embed import Encoder
from jobs.questions import ProbeSpec
from jobs.spec import EmbedSpec, EvaluateSpec, JobSpec, ShardSpec, TrainSpec
from pipeline.corpus import Media
from pipeline.generations import inputs_of, items_of
from pipeline.probing import probe_seconds

PROBED = 64  # inputs of the first chunk whose header is read where clips depend on how long a video is


def estimate(spec: JobSpec) -> dict[str, Any]:
    """{what: how much}, in the order to print it. Raises SpecError as a run would."""
    if isinstance(spec, TrainSpec):
        return _training(spec)
    if isinstance(spec, ProbeSpec):
        return _probing(spec)
    return _testing(spec) if isinstance(spec, EvaluateSpec) else _units(spec)


def _testing(spec: EvaluateSpec) -> dict[str, Any]:
    from jobs.testing import opened

    found = {f"{name} videos": len(source.dataset.videos()) for name, source in opened(spec)[1].items()}
    return {"job": spec.kind, **found, "output": spec.output.path}


def _probing(spec: ProbeSpec) -> dict[str, Any]:
    from jobs.probe import opened

    exam = opened(spec)
    found: dict[str, Any] = {"job": spec.kind, "model": exam.embedded.made.model.name}
    found |= {"videos": len(exam.embedded), "classes": len(exam.classes)}
    if spec.leave_out is not None:
        found["groups, each left out in turn"] = len(exam.folds)
    else:
        found["videos learned from"] = len(exam.folds[0].train)
        found["videos asked about"] = len(exam.folds[0].test)
    found["bytes of embeddings in memory"] = 4 * len(exam.embedded) * exam.embedded.dim
    found["output"] = spec.output.path
    return found


def _training(spec: TrainSpec) -> dict[str, Any]:
    from jobs.materials import check, materials

    data = materials(spec)
    check(spec, data)
    found: dict[str, Any] = {"job": spec.kind, "steps": spec.recipe.steps}
    for name, source in data.sources.items():
        count = len(source.dataset)
        found[f"{name} clips"] = count
        found[f"{name} clips in a batch"] = source.share
        found[f"{name} epochs"] = f"{spec.recipe.steps * source.share / count:.2f}"
        found[f"{name} classes"] = len(source.classes)
    for name, source in data.tests.items():
        found[f"{name} clips (test)"] = len(source.dataset)
    found["output"] = spec.output.path
    return found


def _units(spec: ShardSpec | EmbedSpec) -> dict[str, Any]:
    source = frozen.list_source(spec)
    probed: list[int] = []

    def durations(root: str, inputs: pa.Table) -> list[float | None]:
        most = max(1, PROBED // (1 + len(probed)))  # fewer of each later chunk
        uris = inputs["uri"].to_pylist()[:: max(1, inputs.num_rows // most)][:most]
        known = [s for uri in uris if (s := probe_seconds(root, uri, spec.limits)) is not None]
        probed.append(len(uris))
        usual = sum(known) / len(known) if known else None
        return [usual] * inputs.num_rows

    if isinstance(spec, EmbedSpec):
        Encoder(spec.model, source.sampling).check()
    crops = source.sampling.views if source.corpus is not None else 1  # a shard's row is a view already
    views: Counter[Media] = Counter()
    inputs = units = largest = 0
    for table in frozen.units_of(spec, source, durations):
        units += table.num_rows
        inputs += inputs_of(items_of(table))
        for media, clips in zip(table["media"].to_pylist(), table["clips"].to_pylist(), strict=True):
            views[media] += clips * crops
            # A unit is held once by the worker that cuts it and once on its way to the model.
            largest = max(largest, clips * crops * source.plans[media].bytes_per_clip)
    found: dict[str, Any] = {"job": spec.kind, "inputs": inputs}
    if source.corpus is not None and source.corpus.skipped:
        found["left out"] = ", ".join(f"{n} {suffix}" for suffix, n in sorted(source.corpus.skipped.items()))
    for media, count in views.items():
        one = source.plans[media]
        found[f"{media} views"] = count
        found[f"tokens per {media} view"] = one.tokens
        found[f"bytes per {media} view"] = one.bytes_per_clip
    if probed:
        found["views are"] = f"an estimate from the headers of {sum(probed)} inputs"
    found["bytes of tubes"] = sum(n * source.plans[media].bytes_per_clip for media, n in views.items())
    found["units of work"] = units
    found["bytes of the largest unit"] = largest
    found["output"] = spec.output.path
    return found
