"""Where a training run can go on from: distributed checkpoints, each complete or not there at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from jobs.materials import Held
from jobs.optimizer import Average
from pipeline.errors import SpecError, StorageError
from pipeline.storage import locate, written

FOLDER = "checkpoints"
DATA = "data.json"  # what it was learned from
NAME = re.compile(r"step_(\d+)")
# What does not train is where it came from: in the model's own weights.
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def steps(run: Path) -> list[int]:
    """The steps of the complete checkpoints of a run, the last one last."""
    found = (NAME.fullmatch(path.name) for path in (run / FOLDER).glob("step_*"))
    return sorted(int(name.group(1)) for name in found if name is not None)


def check(run: Path, step: int, data: Mapping[str, Held]) -> None:
    """SpecError if a dataset is not what it was when that checkpoint was written: its order is another."""
    path = _place(run, step) / DATA
    then = json.loads(path.read_text()) if path.exists() else {}
    for name, now in data.items():
        before = Held(**then[name]) if name in then else now
        if before.digest != now.digest:
            grown = f"holds {now.clips:,} clips, but {before.clips:,} when step {step} was saved"
            where = "in other shards" if now.source == "shards" else "under other names"
            other = f"holds its {now.clips:,} clips {where} than when step {step} was saved"
            problem = grown if before.clips != now.clips else other
            kept = f"these {now.source} back as they were, and new clips elsewhere"
            raise SpecError(
                f"data.{name}.{now.source}", now.folder, f"{problem}; name a new output.path, or put {kept}"
            )


def load(
    run: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> None:
    """Put everything back as it was after that step, on any number of processes."""
    state = _state(module, optimizer, average)
    dcp.load(state, checkpoint_id=_place(run, step))
    set_state_dict(
        module, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"],
        options=TRAINED,
    )  # fmt: skip


class Saver:
    """Writes checkpoints while training goes on, one at a time, together with all other processes.

    Each begins with a copy of all that trains, in memory, which a thread then writes. What cannot be written
    is raised, by every process, when the next one is begun or waited for. The run keeps its `keep` last ones.
    """

    def __init__(self, run: Path, keep: int, data: Mapping[str, Held]) -> None:
        self._run, self._keep, self._data = run, keep, data
        # Of its own: the training's carries gradients at the same time, maybe on GPUs.
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
    ) -> None:
        """Begin to write one, when the one before it is complete. StorageError: that cannot be written."""
        self.wait()
        state = self._stager.stage(_state(module, optimizer, average))
        self._writing = self._thread.submit(self._write, step, state)

    def wait(self) -> None:
        """Until the last one is complete. StorageError: it cannot be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is being written, so that nothing goes on behind the caller's back."""
        try:
            with suppress(*(() if error is None else (Exception,))):  # the first error is the one to be told
                self.wait()
        finally:
            self._thread.shutdown()
            self._stager.close()
            dist.destroy_process_group(self._group)

    def _write(self, step: int, state: Any) -> None:
        place = _place(self._run, step)
        unfinished = place.with_name(f"{place.name}.unfinished")
        first = dist.get_rank() == 0
        if first:
            shutil.rmtree(unfinished, ignore_errors=True)
        dist.barrier(self._group)
        with written(locate(str(place))):
            try:
                dcp.save(state, checkpoint_id=unfinished, process_group=self._group)
            except CheckpointException as error:  # of any process, told to all; no Exception
                failure = next(iter(error.failures.values()))[0]
                if isinstance(failure, RuntimeError):  # how torch's archives tell of a write that failed
                    failure = OSError(f"{str(failure).splitlines()[0]}: is the disk full?")
                raise failure from None
        # Complete for all, or for none.
        said = [self._complete(unfinished, place) if first else None]
        dist.broadcast_object_list(said, src=0, group=self._group)
        if said[0] is not None:
            raise StorageError(said[0])

    def _complete(self, unfinished: Path, place: Path) -> str | None:
        """Let it count, and drop older ones; what went wrong."""
        try:
            with written(locate(str(place))):
                data = {name: held._asdict() for name, held in self._data.items()}
                (unfinished / DATA).write_text(json.dumps(data, indent=1) + "\n")
                unfinished.rename(place)
                for old in steps(self._run)[: -self._keep]:
                    shutil.rmtree(_place(self._run, old))
        except StorageError as error:
            return str(error)
        return None


def _place(run: Path, step: int) -> Path:
    return run / FOLDER / f"step_{step:09d}"


def _state(module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None) -> dict[str, Any]:
    model, optimizer_state = get_state_dict(module, optimizer, options=TRAINED)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer_state}
    if average is not None:
        state["average"] = average.values
    return state
