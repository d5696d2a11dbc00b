"""How often a model is right about clips that it did not learn from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from jobs.feed import Part, Source
from jobs.objective import Objective


def accuracies(
    module: Objective, tests: Mapping[str, Source], batch: int, device: torch.device, *, half: bool
) -> dict[str, float]:
    """The share of each test set's clips whose class is named first; every process takes its part."""
    found = {}
    module.eval()
    for name, test in tests.items():
        metric = MulticlassAccuracy(len(test.classes), average="micro").to(device)
        for part, real in _parts(test, batch, device):
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
                _, (logits,), _ = module([part])
            if real.any():  # not all of it is there to fill up
                metric.update(logits[real], part.targets[real])
        found[f"accuracy/{name} (test)"] = float(metric.compute())
    return found


def _parts(test: Source, batch: int, device: torch.device) -> Iterator[tuple[Part, Tensor]]:
    """This process' share of a test set, and which of its clips count.

    All processes get equally many batches of one size, because with shared weights they go through each layer
    together; what is missing at the end is clips once more.
    """
    rank, world, count = dist.get_rank(), dist.get_world_size(), len(test.dataset)
    size = min(batch, math.ceil(count / world))
    for k in range(math.ceil(count / (size * world))):
        numbers = (k * world + rank) * size + np.arange(size)
        clips = numbers % count
        read = test.dataset.read(clips, np.zeros_like(clips))
        tubes = {name: x.to(device) for name, x in read.tubes.items()}
        targets = torch.from_numpy(test.targets[clips]).to(device)
        alone, whole = torch.arange(size, device=device), torch.ones(size, device=device)
        part = Part(test.head, tubes, None, targets, alone, whole, None, [])
        yield part, torch.from_numpy(numbers < count).to(device)
