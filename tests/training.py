"""Training in this process and in several, and what a step of it is given, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import jobs
from jobs.feed import Part
from jobs.loop import train
from jobs.metrics import Row
from jobs.spec import TrainSpec, load
from pipeline.errors import SpecError


def trained(values: dict[str, Any], name: str = "run") -> tuple[list[Row], dict[str, Tensor]]:
    """Train in this process: what was logged, and the weights."""
    spec = load(values)
    assert isinstance(spec, TrainSpec)
    run, rows = Path(spec.output.path).with_name(name), []
    run.mkdir(exist_ok=True)
    train(spec, run, rows.append)
    return rows, load_file(run / "model" / "model.safetensors")


def refused(values: dict[str, Any]) -> str:
    """What is said of a job before anything is computed."""
    with pytest.raises(SpecError) as caught:
        jobs.run(values)
    assert not (Path(values["output"]["path"]) / "model").exists()
    return str(caught.value)


def part(
    targets: Sequence[Any] = (),
    *,
    tubes: dict[str, Tensor] | None = None,
    captions: Sequence[int] | None = None,
    partners: Sequence[int] | None = None,
    shares: Sequence[float] | None = None,
) -> Part:
    """Clips as a loss sees them, unmixed unless it is said."""
    count = len(captions if captions is not None else targets)
    return Part(
        "clips", tubes or {}, None, torch.tensor(targets),
        torch.tensor(range(count) if partners is None else partners),
        torch.ones(count) if shares is None else torch.tensor(shares),
        None if captions is None else torch.tensor(captions), [],
    )  # fmt: skip


class CutOffError(Exception):
    """Stands for whatever ends a process."""


@contextmanager
def cut_off(steps: int) -> Iterator[None]:
    """Training ends after so many steps of its optimizer."""
    left, step = iter(range(steps)), torch.optim.AdamW.step

    def some(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise CutOffError
        return step(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", some)
        yield


def by_torchrun(values: dict[str, Any], folder: Path, name: str, processes: int) -> list[Row]:
    """The rows that the first of so many processes logs."""
    run = folder / name
    run.mkdir()
    (folder / f"{name}.json").write_text(json.dumps(values))
    worker = Path(__file__).parent / "train_worker.py"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
         str(worker), str(folder / f"{name}.json"), str(run)],
        env={**os.environ, "PYTHONPATH": str(worker.parent.parent), "OMP_NUM_THREADS": "1"},
        check=True, capture_output=True, timeout=200,
    )  # fmt: skip
    return [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
