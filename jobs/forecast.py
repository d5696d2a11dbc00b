"""From what a sample took to what all takes, and how long that is with so many workers. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SPREAD = 2.0  # standard errors either way: 95 of 100 times, where errors are normal


@dataclass(frozen=True)
class Figure:
    """An estimate, and what it lies between; both are None where a sample cannot tell."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_exact(self) -> bool:
        return self.low == self.value == self.high

    def times(self, factor: float) -> Figure:
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Figure(self.value * factor, low, high)


def exactly(value: float) -> Figure:
    return Figure(value, value, value)


def total(figures: Iterable[Figure]) -> Figure:
    """The sum of independent estimates: their errors add up as squares."""
    some = list(figures)
    value = sum(one.value for one in some)
    if any(one.low is None or one.high is None for one in some):
        return Figure(value)
    below = math.hypot(*(one.value - (one.low or 0.0) for one in some))
    above = math.hypot(*((one.high or 0.0) - one.value for one in some))
    return Figure(value, value - below, value + above)


def expanded(sizes: Sequence[float], amounts: Sequence[float], whole: Figure, inputs: int) -> Figure:
    """The amount of a whole corpus, from that of some of its inputs: the ratio estimator.

    Its standard error is that of Cochran, Sampling Techniques (1977), section 6.4. Where each input of a
    sample of n gives what its size says, the whole may all the same lack 3/n of it, 95 of 100 times (the rule
    of three: Hanley and Lippman-Hand, JAMA 249, 1983).

    Args:
        sizes: of the sampled inputs by their headers.
        amounts: what each was found to give or to take.
        whole: the sum of the sizes of all inputs.
        inputs: how many there are, the sampled ones included.
    """
    n, size = len(sizes), sum(sizes)
    if not n or not size:
        return Figure(0.0)
    ratio = sum(amounts) / size
    value = ratio * whole.value
    if n >= inputs:
        return Figure(value, value, value)
    if n == 1 or whole.low is None or whole.high is None:
        return Figure(value)
    residuals = [amount - ratio * one for one, amount in zip(sizes, amounts, strict=True)]
    variance = sum(x * x for x in residuals) / (n - 1) * (1 - n / inputs) / n
    error = SPREAD * math.sqrt(variance) * n / size * whole.value
    below = math.hypot(error or value * min(1.0, 3 / n), ratio * (whole.value - whole.low))
    above = math.hypot(error, ratio * (whole.high - whole.value))
    return Figure(value, max(0.0, value - below), value + above)


def counted(sizes: Sequence[float], value: float, inputs: int) -> Figure:
    """A count of windows, of inputs some of whose lengths are known: `sizes` are the windows of these."""
    n = len(sizes)
    if n >= inputs:
        return exactly(value)
    if n < 2:
        return Figure(value)
    mean = sum(sizes) / n
    deviation = math.sqrt(sum((x - mean) ** 2 for x in sizes) / (n - 1))
    error = SPREAD * deviation / mean * math.sqrt((1 - n / inputs) / n) * value
    return Figure(value, max(0.0, value - error), value + error)


@dataclass(frozen=True)
class Stage:
    """What a pool of workers has to do, and with what.

    seconds: of one worker, for all of it. cpu_seconds: of that, what keeps cores busy. cores: of the nodes
    that it may run on.
    """

    name: str
    seconds: float
    cpu_seconds: float
    workers: int
    cores: float


@dataclass(frozen=True)
class Forecast:
    """How long it takes; what takes longest, and what each of the things that are worked at in parallel does.

    bottleneck: a stage; `cores_decide` says that it is not its workers that are too few, but the cores that
    all stages share. bounds_seconds: {stage, or "cores": how long that alone would take}.
    """

    wall_seconds: float
    bottleneck: str | None
    cores_decide: bool = False
    bounds_seconds: dict[str, float] = field(default_factory=dict)


def forecast(stages: Sequence[Stage], units: int, start_seconds: float, *, beside: bool) -> Forecast:
    """How long stages take that units stream through, one after the other, all of them at work at once.

    The slowest decides. Workers take whole units, so in the last round some may have none; the first unit has
    to come to the slowest stage, and the last one has to go on from there.

    Args:
        start_seconds: until the first worker has a unit, and after the last.
        beside: whether the stages share their cores; then what these do for each adds up.
    """
    if not units or not stages:
        return Forecast(start_seconds, None)
    bounds = {one.name: _seconds(one, units) for one in stages}
    unit_seconds = sum(one.seconds for one in stages) / units  # of one, all the way
    wall_seconds = max(bounds[one.name] + unit_seconds - one.seconds / units for one in stages)
    if beside and len(stages) > 1:
        bounds["cores"] = sum(one.cpu_seconds for one in stages) / max(one.cores for one in stages)
        wall_seconds = max(wall_seconds, bounds["cores"])
    slowest = max(bounds, key=lambda name: bounds[name])
    cores_decide = slowest == "cores"
    if cores_decide:
        slowest = max(stages, key=lambda one: one.cpu_seconds).name
    return Forecast(start_seconds + wall_seconds, slowest, cores_decide, bounds)


def _seconds(stage: Stage, units: int) -> float:
    """A stage alone: whole units, shared out among its workers, on its cores."""
    rounds = math.ceil(units / stage.workers) / units
    return max(stage.seconds * rounds, stage.cpu_seconds / stage.cores)
