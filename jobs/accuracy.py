"""How often a model is right about clips that it did not learn from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from jobs.feed import Part, Reader, Request, Source, read_here
from jobs.objective import Objective
from pipeline.errors import Failure


def accuracies(
    module: Objective, tests: Mapping[str, Source], batch: int, device: torch.device, *, half: bool,
    reader: Reader = read_here,
) -> tuple[dict[str, float], list[Failure]]:  # fmt: skip
    """The share of each test set's clips whose class is named first; every process takes its part.

    Clips that cannot be read are left out of it: the failures of those of this process.
    """
    found, failures = {}, list[Failure]()
    module.eval()
    for name, test in tests.items():
        metric = MulticlassAccuracy(len(test.classes), average="micro").to(device)
        for part, real in _parts(test, batch, device, reader):
            failures += part.failures
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
                _, (logits,), _ = module([part])
            if real.any():  # not all of it is there to fill up
                metric.update(logits[real], part.targets[real])
        found[f"accuracy/{name} (test)"] = float(metric.compute())
    return found, failures


def _parts(test: Source, batch: int, device: torch.device, reader: Reader) -> Iterator[tuple[Part, Tensor]]:
    """This process' share of a test set, and which of its clips count.

    All processes get equally many batches of one size, because with shared weights they go through each layer
    together; what is missing at the end is clips once more, which do not count, nor do those that stand in
    for others.
    """
    rank, world, count = dist.get_rank(), dist.get_world_size(), len(test.dataset)
    size = min(batch, math.ceil(count / world))
    rounds = range(math.ceil(count / (size * world)))
    places = [(k * world + rank) * size + np.arange(size) for k in rounds]
    requests = (Request(test.dataset, numbers % count, np.zeros_like(numbers)) for numbers in places)
    for numbers, read in zip(places, reader(requests), strict=True):
        tubes = {name: x.to(device) for name, x in read.tubes.items()}
        targets = torch.from_numpy(test.targets[read.clips]).to(device)
        alone, whole = torch.arange(size, device=device), torch.ones(size, device=device)
        part = Part(test.head, tubes, None, targets, alone, whole, None, [], read.failures)
        yield part, torch.from_numpy(read.clips == numbers).to(device)
