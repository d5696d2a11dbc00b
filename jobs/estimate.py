"""`tubelet plan`: what a run would do, from its spec and a look at its input. Computes and writes nothing."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from jobs import frozen
from jobs.embed import Encoder
from jobs.spec import EmbedSpec, ShardSpec
from pipeline.probing import probe_seconds

PROBED = 64  # inputs whose header is read where clips depend on how long a video is


def estimate(spec: ShardSpec | EmbedSpec) -> dict[str, Any]:
    """{what: how much}, in the order to print it. Raises SpecError as a run would."""
    source = frozen.list_source(spec)
    probed: list[int] = []

    def durations(root: str, inputs: pa.Table) -> list[float | None]:
        step = max(1, inputs.num_rows // PROBED)
        uris = inputs["uri"].to_pylist()[::step][:PROBED]
        known = [s for uri in uris if (s := probe_seconds(root, uri, spec.limits)) is not None]
        probed.append(len(uris))
        usual = sum(known) / len(known) if known else None
        return [usual] * inputs.num_rows

    plan = frozen.freeze_source(spec, source, durations)
    if isinstance(spec, EmbedSpec):
        Encoder(spec.model, plan.sampling).check()
    found: dict[str, Any] = {"job": spec.kind, "inputs": plan.inputs}
    if source.corpus is not None and source.corpus.skipped:
        found["left out"] = ", ".join(f"{n} {suffix}" for suffix, n in sorted(source.corpus.skipped.items()))
    kinds = plan.units.group_by("media").aggregate([("clips", "sum")])
    crops = plan.sampling.crops if source.corpus is not None else 1  # a shard's row is a view already
    views = {
        media: clips * crops
        for media, clips in zip(kinds["media"].to_pylist(), kinds["clips_sum"].to_pylist(), strict=True)
    }
    tube_bytes = 0
    for media, count in views.items():
        one = plan.plans[media]
        found[f"{media} views"] = count
        found[f"tokens per {media} view"] = one.tokens
        found[f"bytes per {media} view"] = one.bytes_per_clip
        tube_bytes += count * one.bytes_per_clip
    if probed:
        found["views are"] = f"an estimate from the headers of {probed[0]} inputs"
    found["bytes of tubes"] = tube_bytes
    found["units of work"] = plan.units.num_rows
    # A unit is held once by the worker that cuts it and once on its way to the model.
    largest = max(
        clips * crops * plan.plans[media].bytes_per_clip
        for media, clips in zip(plan.units["media"].to_pylist(), plan.units["clips"].to_pylist(), strict=True)
    )
    found["bytes of the largest unit"] = largest
    found["output"] = spec.output.path
    return found
