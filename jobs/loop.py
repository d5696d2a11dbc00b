"""The training loop of one process among any number. It knows no Ray: plain, under torchrun, or in a worker.

What is learned depends on the spec alone: the order of the clips on its seed, everything random in a step on
the seed and the step's number. So a run can be cut anywhere, and go on from its last checkpoint.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from jobs import checkpoints
from jobs.accuracy import accuracies
from jobs.checkpoints import Saver
from jobs.datasets import keep_lists
from jobs.feed import Feed, Part, Reader, read_here
from jobs.materials import Materials, create, held, materials
from jobs.metrics import Meter, Row, name_failures
from jobs.model import in_bfloat16
from jobs.objective import Objective, objective
from jobs.optimizer import Average, optimizer, set_rate
from jobs.processes import processes, terminated
from jobs.recipe import Learning
from models import weights
from models.transformer import Layer
from pipeline.errors import Failure, SpecError

LOG_STEPS = 20  # between two rows
STOP = ".stop"  # a file in the run's folder
SCORE = "score.json"  # beside the best model: how good it was


class Log(Protocol):
    """Told what happened, on the first process alone."""

    def __call__(self, row: Row) -> None: ...


class DivergedError(RuntimeError):
    """The loss or its gradient is no number any more."""


def train(spec: Learning, run: Path, log: Log, reader: Reader = read_here) -> bool:
    """Train as the spec says, or go on where an earlier call was stopped, and leave RUN/model.

    Args:
        reader: of the clips; the one that is left out decodes videos in this process.

    Returns:
        False if it was stopped: by SIGTERM, or because RUN/.stop is there. What was done is in a checkpoint.

    Raises:
        SpecError: the spec does not fit its data, or that is not what the last checkpoint was made with.
        StorageError: a checkpoint cannot be written, or videos are not where they were.
        DivergedError: naming the step and the clips; the last checkpoint is from before.
    """
    with terminated() as stopped, processes() as device:
        torch.use_deterministic_algorithms(spec.strategy.deterministic)
        return _Training(spec, run, log, device, stopped, reader).run()


class _Training:
    """All that a run holds, and its steps."""

    def __init__(
        self, spec: Learning, run: Path, log: Log, device: torch.device, stopped: Event, reader: Reader
    ) -> None:
        self.spec, self.folder, self.device, self.reader = spec, run, device, reader
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.log = log if self.rank == 0 else lambda row: None
        shares = spec.shares()
        parts = self.world * spec.recipe.accumulate * spec.recipe.augment.together
        if any(share % parts for share in shares.values()):
            problem = f"{shares} clips of each dataset are not shared out evenly by {self.world} workers"
            raise SpecError("recipe.batch", spec.recipe.batch, problem)
        if self.rank == 0:
            keep_lists(spec, run)
        dist.barrier()
        data = materials(spec, run)
        self.classes, self.sources, self.tests = data.classes, data.sources, data.tests
        self.held = held(spec, data)
        self.model = create(spec, data)
        self.module, self.wrapped = self._laid_out(data)
        self.optimizer = optimizer(self.model.named_parameters(), spec.recipe.optimizer)
        ema = spec.recipe.optimizer.ema
        self.average = None if ema is None else Average(self.module.named_parameters(), ema)
        self.half = in_bfloat16(spec.strategy.precision, device.type)
        self.stopped = stopped
        # As the first process sees the folder: all of them must do the same.
        score = run / "best" / SCORE
        best = json.loads(score.read_text())["accuracy"] if score.exists() else -1.0
        seen: list[Any] = [checkpoints.steps(run), best]
        dist.broadcast_object_list(seen, src=0, device=device)
        self.there: list[int] = seen[0]
        self.best: float = seen[1]

    def _laid_out(self, data: Materials) -> tuple[Objective, nn.Module]:
        """The module with its weights where the strategy wants them, and what its batches go through."""
        strategy = self.spec.strategy
        self.model.recompute_activations(strategy.recompute)
        module = objective(self.spec, data, self.model.to(self.device), self.device)
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

    def run(self) -> bool:
        """All steps that are left; False if it was asked to stop, and has, after a checkpoint."""
        with Saver(self.folder, self.spec.checkpoints.keep, self.held) as saver:
            finished = self._steps(saver)
        if finished:
            self._write("model")
        return finished

    def _steps(self, saver: Saver) -> bool:
        spec, recipe = self.spec, self.spec.recipe
        first = self._resume()
        feed = Feed(
            self.sources, self.rank, self.world, recipe.accumulate, recipe.seed, recipe.augment, self.device,
            self.reader,
        )  # fmt: skip
        meter, missed, asked = Meter(recipe.batch), list[Failure](), time.perf_counter()
        for step, parts in enumerate(feed.steps(first, recipe.steps), first):
            waited, done = time.perf_counter() - asked, step + 1
            found = self._step(step, parts)
            missed += [failure for part in parts for one in part for failure in one.failures]
            meter.add(time.perf_counter() - asked, waited, found)
            last = done == recipe.steps
            if done % LOG_STEPS == 0 or last:
                row = meter.row(done, self._mean)
                row["rate"] = recipe.optimizer.rate(step, recipe.steps)
                if self.device.type == "cuda":
                    row["gpu_bytes"] = torch.cuda.max_memory_allocated()
                if spec.decodes:
                    row["failed"] = self._failed(done, missed)
                self.log(row)
                meter, missed = Meter(recipe.batch), []
            wanted = spec.validation.every_steps
            if self.tests and ((wanted is not None and done % wanted == 0) or last):
                self._test(done)
            stop = self._asked_to_stop()
            if (done % spec.checkpoints.every_steps == 0 or stop) and not last:
                if spec.decodes:
                    self._failed(done, missed)  # by now: what is done is not done again
                saver.save(done, self.module, self.optimizer, self.average)
            if stop and not last:
                return False
            asked = time.perf_counter()
        return True

    def _failed(self, step: int, missed: list[Failure]) -> int:
        """How many clips others stood in for, on all processes; their inputs are named in the folder."""
        everywhere: list[Any] = [None] * self.world
        dist.all_gather_object(everywhere, missed)
        failures = [failure for some in everywhere for failure in some]
        if failures and self.rank == 0:
            name_failures(self.folder, step, failures)
        return len(failures)

    def _asked_to_stop(self) -> bool:
        """By a signal to any process, or by a file in the run's folder, as the first process sees it."""
        mine = self.stopped.is_set() or (self.rank == 0 and (self.folder / STOP).exists())
        flag = torch.tensor(float(mine), device=self.device)
        dist.all_reduce(flag)
        return bool(flag.item())

    def _resume(self) -> int:
        """Go back to the last checkpoint; how many steps are done."""
        if not self.there:
            return 0
        last = self.there[-1]
        checkpoints.check(self.folder, last, self.held)
        checkpoints.load(self.folder, last, self.module, self.optimizer, self.average)
        self.log({"step": last, "resumed": last})
        return last

    def _step(self, step: int, parts: list[list[Part]]) -> dict[str, float]:
        """One step of the optimizer: mean losses, the gradient's norm, and the share of hits by dataset."""
        recipe = self.spec.recipe
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        found: dict[str, float] = {}
        for number, part in enumerate(parts):
            # Of dropout, say: by the part of the batch, so that it is the same after a restart, and on any
            # number of workers that make as many parts (workers x accumulate). More of them draw otherwise.
            torch.manual_seed(hash((recipe.seed, step, number * self.world + self.rank)))
            with self._synchronised(number == len(parts) - 1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    loss, logits, terms = self.wrapped(part)
                (loss / len(parts)).backward()
            for name, value in {"loss": loss, **terms}.items():
                found[name] = found.get(name, 0.0) + value.item() / len(parts)
            for name, x, one in zip(self.sources, logits, part, strict=True):
                if not recipe.multi_label:
                    hits = (x.argmax(1) == one.targets).float().mean().item()
                    found[f"accuracy/{name}"] = found.get(f"accuracy/{name}", 0.0) + hits / len(parts)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, recipe.optimizer.clip_norm or math.inf)
        found["gradient"] = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if not math.isfinite(found["gradient"]):  # the same on every rank, so that all of them stop
            self._diverged(step, found["loss"], parts)
        set_rate(self.optimizer, recipe.optimizer.rate(step, recipe.steps))
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.module, step)
        return found

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
        there = checkpoints.steps(self.folder)
        last = f"the checkpoint of step {there[-1]} is from before" if there else "there is no checkpoint yet"
        raise DivergedError(
            f"step {step + 1}, worker {self.rank}: the gradient is not finite; {mine}; {last}. "
            "Begin anew in another folder with a lower recipe.optimizer.learning_rate, or set clip_norm"
        )

    def _mean(self, value: float) -> float:
        """Over all ranks."""
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item() / self.world

    def _test(self, step: int) -> None:
        """Accuracies of all validation sets; RUN/best is the model whose mean of them was the highest."""
        with self._averaged():
            batch = self.spec.validation.batch
            row, missed = accuracies(
                self.module, self.tests, batch, self.device, half=self.half, reader=self.reader
            )
            if isinstance(self.module, FSDPModule):
                self.module.reshard()  # which its root does only after a backward pass
        failed = {"failed (test)": self._failed(step, missed)} if self.spec.decodes else {}
        self.log({"step": step, **row, **failed})
        mean = sum(row.values()) / len(row)
        if self.spec.validation.every_steps is not None and mean > self.best:
            self.best = mean
            self._write("best")
            if self.rank == 0:
                score = {"step": step, "accuracy": mean}
                (self.folder / "best" / SCORE).write_text(json.dumps(score) + "\n")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """With the averaged weights in the model, if there are such."""
        if self.average is not None:
            self.average.exchange(self.module)
        try:
            yield
        finally:
            if self.average is not None:
                self.average.exchange(self.module)

    def _write(self, name: str) -> None:
        """RUN/name: all weights, the averaged ones if there are such, and what the classes are called."""
        with self._averaged():  # until it is written: on a CPU these are the weights themselves, no copies
            state = {
                name: (x.full_tensor() if isinstance(x, DTensor) else x).cpu()
                for name, x in self.model.state_dict().items()
            }
            if self.rank == 0:
                weights.save(self.model, self.folder / name, state=state, classes=self.classes)
        dist.barrier()
