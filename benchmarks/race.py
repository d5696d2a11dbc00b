"""Two ways to do the same, taking turns, so that what else the machine does hits both alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Machine:
    """What is measured on: `clock` in seconds; on a GPU there is memory for larger batches."""

    device: str
    clock: Callable[[], float]

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    def seconds(self, run: Run) -> float:
        self.wait()
        begun = self.clock()
        run()
        self.wait()
        return self.clock() - begun

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def autocast(self, bf16: bool = False) -> AbstractContextManager[None]:
        return torch.autocast(self.device, torch.bfloat16, enabled=bf16 or self.gpu)

    def bf16_unit(self) -> bool:
        """Whether the CPU multiplies bfloat16 matrices natively."""
        path = Path("/proc/cpuinfo")
        flags = path.read_text().split() if path.exists() else []
        return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


@dataclass(frozen=True)
class Row:
    """Two ways to do the same. `difference` is the largest one between what they give."""

    name: str
    baseline: str
    ours: Run
    theirs: Run
    difference: float
    least: float | None = None


def forward(model: Callable[..., Tensor], x: object, machine: Machine, bf16: bool = False) -> Run:
    def run() -> Tensor:
        with torch.no_grad(), machine.autocast(bf16):
            return model(x)

    return run


def step(model: nn.Module, embed: Callable[..., Tensor], x: object, machine: Machine) -> Run:
    """A training step, the channels of an embedding taken for classes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def run() -> Tensor:
        with machine.autocast():
            z_BD = embed(x)
        loss = functional.cross_entropy(
            z_BD.float(), torch.zeros(len(z_BD), dtype=torch.long).to(z_BD.device)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return run


def backward(model: nn.Module, x: object, machine: Machine, bf16: bool) -> Run:
    """Forward, and the gradients of the weights for one of the tokens."""
    with torch.no_grad(), machine.autocast(bf16):
        gradient = torch.randn_like(model(x))

    def run() -> Tensor:
        model.zero_grad()
        with machine.autocast(bf16):
            tokens = model(x)
        tokens.backward(gradient)
        return tokens

    return run


def difference(ours: Run, theirs: Run, most: float) -> float:
    """The largest one between two results, which must be at most `most`."""
    found = (ours().float() - theirs().float()).abs().max().item()
    assert found <= most, f"the two differ by {found}"
    return found


def both(
    name: str,
    baseline: str,
    ours: tuple[Callable[..., Tensor], object],
    theirs: tuple[Callable[..., Tensor], object],
    machine: Machine,
    *,
    least: float | None,
    bf16: bool = False,
) -> Row:
    """The row of a forward pass."""
    runs = forward(*ours, machine, bf16), forward(*theirs, machine, bf16)
    most = 0.2 if bf16 or machine.gpu else 1e-3
    return Row(name, baseline, *runs, difference(*runs, most), least)


COLUMNS = ("", "baseline", "ours, ms", "baseline, ms", "ratio", "half of rounds", "wanted", "difference")


def table(title: str) -> Table:
    found = Table(title=title, title_justify="left")
    for index, column in enumerate(COLUMNS):
        found.add_column(column, justify="right" if index > 1 else "left")
    return found


def race(row: Row, machine: Machine, rounds: int) -> tuple[str, ...]:
    """A line of the table. A round is one run of ours, then one of the baseline; the first does not count."""
    row.ours()
    row.theirs()
    pairs = [(machine.seconds(row.ours), machine.seconds(row.theirs)) for _ in range(rounds)]
    ours, theirs = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [theirs / ours for ours, theirs in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    wanted = "" if row.least is None else f"{row.least:g} {'met' if middle >= row.least else 'MISSED'}"
    return (
        row.name,
        row.baseline,
        f"{ours:.1f}",
        f"{theirs:.1f}",
        f"{middle:.2f}",
        f"{low:.2f}-{high:.2f}",
        wanted,
        f"{row.difference:.1e}",
    )
