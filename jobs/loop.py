"""The training loop of one process among any number. It knows no Ray: plain, under torchrun, or in a worker.

What is learned depends on the spec alone: the order of the clips on its seed, everything random in a step on
the seed and the step's number. So a run can be cut anywhere, and go on from its last checkpoint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from jobs import checkpoints
from jobs.accuracy import accuracies
from jobs.feed import Feed, Part
from jobs.materials import create, materials
from jobs.metrics import Row
from jobs.objective import Objective
from jobs.optimizer import Average, optimizer, set_rate
from jobs.recipe import Learning
from models import weights
from models.transformer import Layer
from pipeline.errors import SpecError

LOG_STEPS = 20  # between two rows


class Log(Protocol):
    """Told what happened, on the first process alone."""

    def __call__(self, row: Row) -> None: ...


class DivergedError(RuntimeError):
    """The loss or its gradient is no number any more."""


def train(spec: Learning, run: Path, log: Log) -> None:
    """Train as the spec says, or go on where an earlier call was stopped, and leave RUN/model.

    Raises:
        SpecError: the spec does not fit its data.
        DivergedError: naming the step and the clips; the last checkpoint is from before.
    """
    with processes() as device:
        torch.use_deterministic_algorithms(spec.strategy.deterministic)
        _Training(spec, run, log, device).run()


@contextmanager
def processes() -> Iterator[torch.device]:
    """This process' device, with a process group: the one there is, torchrun's, or one of its own."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield device
        return
    alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if cuda else "gloo", **({} if "RANK" in os.environ else alone))
    try:
        yield device
    finally:
        dist.destroy_process_group()


class _Training:
    """All that a run holds, and its steps."""

    def __init__(self, spec: Learning, run: Path, log: Log, device: torch.device) -> None:
        self.spec, self.run_folder, self.device = spec, run, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.log = log if self.rank == 0 else lambda row: None
        shares = spec.shares()
        if any(share % (self.world * spec.recipe.accumulate) for share in shares.values()):
            problem = f"{shares} clips of each dataset are not shared out evenly by {self.world} workers"
            raise SpecError("recipe.batch", spec.recipe.batch, problem)
        data = materials(spec)
        self.classes, self.sources, self.tests = data.classes, data.sources, data.tests
        self.model = create(spec, data)
        self.module, self.wrapped = self._laid_out()
        named = list(self.module.named_parameters())
        self.optimizer = optimizer(named, spec.recipe.optimizer)
        ema = spec.recipe.optimizer.ema
        self.average = None if ema is None else Average(named, ema)
        precision = spec.strategy.precision
        self.half = precision == "bf16" or (precision == "auto" and device.type == "cuda")

    def _laid_out(self) -> tuple[Objective, nn.Module]:
        """The module with its weights where the strategy wants them, and what its batches go through."""
        strategy, recipe = self.spec.strategy, self.spec.recipe
        self.model.recompute_activations(strategy.recompute)
        module = Objective(
            self.model.to(self.device), label_smoothing=recipe.label_smoothing, multi_label=recipe.multi_label
        )
        layers = [layer for layer in self.model.modules() if isinstance(layer, Layer)]
        if strategy.compile:
            for layer in layers:
                layer.compile()
        if strategy.parallel == "fsdp":
            for layer in layers:
                fully_shard(layer)
            fully_shard(module)
            return module, module
        if self.world == 1:
            return module, module
        return module, DistributedDataParallel(module, broadcast_buffers=False)

    def run(self) -> None:
        spec, recipe = self.spec, self.spec.recipe
        first = self._resume()
        feed = Feed(
            self.sources, self.rank, self.world, recipe.accumulate, recipe.seed, recipe.augment, self.device
        )
        begun = asked = time.perf_counter()
        waited, lately = 0.0, first
        every = spec.checkpoints.every_steps
        for step, parts in enumerate(feed.steps(first, recipe.steps), first):
            waited += time.perf_counter() - asked
            loss, norm, hits = self._step(step, parts)
            done = step + 1
            if done % LOG_STEPS == 0 or done == recipe.steps:
                seconds = time.perf_counter() - begun
                row: Row = {"step": done, "loss": self._mean(loss), "gradient": norm}
                row |= {f"accuracy/{name}": self._mean(hit) for name, hit in hits.items()}
                row["rate"] = recipe.optimizer.rate(step, recipe.steps)
                row["clips_per_second"] = (done - lately) * recipe.batch / seconds
                row["waited"] = waited / seconds
                if self.device.type == "cuda":
                    row["gpu_bytes"] = torch.cuda.max_memory_allocated()
                self.log(row)
                begun, waited, lately = time.perf_counter(), 0.0, done
            wanted = spec.validation.every_steps
            if self.tests and ((wanted is not None and done % wanted == 0) or done == recipe.steps):
                self.log({"step": done, **self._test()})
            if done % every == 0 and done < recipe.steps:
                keep = spec.checkpoints.keep
                checkpoints.save(self.run_folder, done, self.module, self.optimizer, self.average, keep)
            asked = time.perf_counter()
        self._finish()

    def _resume(self) -> int:
        """Go back to the last checkpoint; how many steps are done."""
        there = checkpoints.steps(self.run_folder)
        if not there:
            return 0
        checkpoints.load(self.run_folder, there[-1], self.module, self.optimizer, self.average)
        self.log({"step": there[-1], "resumed": there[-1]})
        return there[-1]

    def _step(self, step: int, parts: list[list[Part]]) -> tuple[float, float, dict[str, float]]:
        """One step of the optimizer: the mean loss, the gradient's norm, and the share of hits by dataset."""
        recipe = self.spec.recipe
        self.model.train()
        # Dropout, say, is another on each rank, and the same after a restart.
        torch.manual_seed(hash((recipe.seed, step, self.rank)))
        self.optimizer.zero_grad(set_to_none=True)
        total, hits = 0.0, dict.fromkeys(self.sources, 0.0)
        for number, part in enumerate(parts):
            with self._synchronised(number == len(parts) - 1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    loss, logits = self.wrapped(part)
                (loss / len(parts)).backward()
            total += loss.item() / len(parts)
            if not recipe.multi_label:
                for name, x, one in zip(self.sources, logits, part, strict=True):
                    hits[name] += (x.argmax(1) == one.targets).float().mean().item() / len(parts)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, recipe.optimizer.clip_norm or float("inf"))
        length = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if length != length or length == float("inf"):  # the same on every rank, so that all of them stop
            self._diverged(step, total, parts)
        set_rate(self.optimizer, recipe.optimizer.rate(step, recipe.steps))
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.module, step)
        return total, length, hits

    def _synchronised(self, last: bool) -> Any:
        """Gradients are exchanged with the last part of a batch only."""
        if isinstance(self.wrapped, FSDPModule):
            self.wrapped.set_requires_gradient_sync(last)
        elif isinstance(self.wrapped, DistributedDataParallel) and not last:
            return self.wrapped.no_sync()
        return nullcontext()

    def _diverged(self, step: int, loss: float, parts: list[list[Part]]) -> None:
        ids = [name for part in parts for one in part for name in one.clip_ids]
        mine = f"its loss is {loss:g} over {', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''}"
        there = checkpoints.steps(self.run_folder)
        last = f"the checkpoint of step {there[-1]} is from before" if there else "there is no checkpoint yet"
        raise DivergedError(
            f"step {step + 1}, worker {self.rank}: the gradient is not finite; {mine}; {last}: lower "
            "recipe.optimizer.learning_rate, or set clip_norm"
        )

    def _mean(self, value: float) -> float:
        """Over all ranks."""
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item() / self.world

    def _test(self) -> Row:
        """Accuracies of all validation sets, with the averaged weights if there are such."""
        if self.average is not None:
            self.average.exchange(self.module)
        try:
            batch = self.spec.validation.batch
            return dict(accuracies(self.module, self.tests, batch, self.device, half=self.half))
        finally:
            if self.average is not None:
                self.average.exchange(self.module)

    def _finish(self) -> None:
        """RUN/model: all weights, the averaged ones if there are such, and what the classes are called."""
        if self.average is not None:
            self.average.exchange(self.module)
        state = {
            name: (x.full_tensor() if isinstance(x, DTensor) else x).cpu()
            for name, x in self.model.state_dict().items()
        }
        if self.rank == 0:
            weights.save(self.model, self.run_folder / "model", state=state, classes=self.classes)
        dist.barrier()
