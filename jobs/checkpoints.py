"""Where a training run can go on from: distributed checkpoints, each complete or not there at all."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from jobs.optimizer import Average

FOLDER = "checkpoints"
NAME = re.compile(r"step_(\d+)")
# What does not train is where it came from: in the model's own weights.
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def steps(run: Path) -> list[int]:
    """The steps of the complete checkpoints of a run, the last one last."""
    found = (NAME.fullmatch(path.name) for path in (run / FOLDER).glob("step_*"))
    return sorted(int(name.group(1)) for name in found if name is not None)


def save(
    run: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    keep: int,
) -> None:
    """Write one together with all other processes; the run keeps its `keep` last ones."""
    place = run / FOLDER / f"step_{step:09d}"
    unfinished = place.with_name(f"{place.name}.unfinished")
    if dist.get_rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
    dist.barrier()
    dcp.save(_state(module, optimizer, average), checkpoint_id=unfinished)
    if dist.get_rank() == 0:
        unfinished.rename(place)
        for old in steps(run)[:-keep]:
            shutil.rmtree(run / FOLDER / f"step_{old:09d}")
    dist.barrier()


def load(
    run: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> None:
    """Put everything back as it was after that step, on any number of processes."""
    state = _state(module, optimizer, average)
    dcp.load(state, checkpoint_id=run / FOLDER / f"step_{step:09d}")
    set_state_dict(
        module, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"],
        options=TRAINED,
    )  # fmt: skip


def _state(module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None) -> dict[str, Any]:
    model, optimizer_state = get_state_dict(module, optimizer, options=TRAINED)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer_state}
    if average is not None:
        state["average"] = average.values
    return state
