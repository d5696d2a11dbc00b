"""Arrow shards -> torch tensors, uncopied. The only module of the pipeline that imports torch."""

from __future__ import annotations

import pyarrow as pa
import torch

from pipeline.plan import Plan
from pipeline.shards import tube_values


def to_torch(batch: pa.RecordBatch, held: Plan, wanted: Plan | None = None) -> dict[str, torch.Tensor]:
    """The tubes of a record batch that was cut by `held`, as a model takes them.

    Returns:
        {tube name: uint8 (rows, n_t, n_h, n_w, kT, kH, kW, 3)}, views of Arrow's own memory, mapped from
        the shard's file where there is one. Never write into them.
    """
    tensors = {
        tube.name: torch.from_dlpack(tube_values(batch, tube.name)).view(-1, *tube.shape)
        for tube in held.tubes
    }
    return tensors if wanted is None else held.take(tensors, wanted)
