"""When workers had units: how many at once, how long the tail was. Pure arithmetic on commit records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.commits import Receipt

LONGEST_PAUSE_SECONDS = 30.0  # in which nobody works: longer ones lie between two calls
LEAST_SECONDS = 1e-3  # that a piece of work takes


@dataclass(frozen=True)
class Timeline:
    """Pieces of work, an element each: a worker of a stage had a unit for a while.

    begun, ended: float64 seconds since the first piece began, pauses between calls left out.
    stages: a name for each number in `stage`, in the order that a unit goes through them.
    workers: a name, "host:process", for each number in `worker`.
    clips: of the unit, at the stage that commits it; 0 at the one before.
    pauses: when work went on after a pause.
    """

    begun: np.ndarray
    ended: np.ndarray
    stage: np.ndarray
    worker: np.ndarray
    unit: np.ndarray
    clips: np.ndarray
    stages: tuple[str, ...]
    workers: tuple[str, ...]
    pauses: tuple[float, ...]

    @classmethod
    def of(cls, receipts: Sequence[Receipt]) -> Timeline:
        """From commit records; those of earlier versions hold no work."""
        pieces = [(receipt, work) for receipt in receipts for work in receipt.work]
        stages = tuple(dict.fromkeys(work.stage for _, work in pieces))
        workers = tuple(sorted({work.worker for _, work in pieces}))
        stage_numbers = {name: i for i, name in enumerate(stages)}
        worker_numbers = {name: i for i, name in enumerate(workers)}
        clips = [receipt.clips if work is receipt.work[-1] else 0 for receipt, work in pieces]
        begun = np.array([work.begun_at for _, work in pieces], np.float64)
        # A clock may have been set back.
        ended = np.maximum(begun + LEAST_SECONDS, [work.ended_at for _, work in pieces])
        begun, ended, pauses = _without_pauses(begun, ended)
        return cls(
            begun,
            ended,
            np.array([stage_numbers[work.stage] for _, work in pieces], np.int64),
            np.array([worker_numbers[work.worker] for _, work in pieces], np.int64),
            np.array([receipt.unit for receipt, _ in pieces], np.int64),
            np.array(clips, np.int64),
            stages,
            workers,
            pauses,
        )

    def __len__(self) -> int:
        return len(self.begun)

    @property
    def seconds(self) -> float:
        return float(self.ended.max()) if len(self) else 0.0

    def at_once(self) -> dict[str, int]:
        """{stage: the most workers that had a unit at the same time}"""
        return {name: _most(begun, ended)[0] for name, begun, ended in self._by_stage()}

    def tail_seconds(self) -> float:
        """How long it took to end: since every worker of the busiest stage had a unit for the last time.

        Every worker: as many as ever had one at once. Busiest: by the time that a worker of it had one.
        """
        found: list[tuple[float, float]] = []
        for _, begun, ended in self._by_stage():
            most, last = _most(begun, ended)
            found.append((float((ended - begun).sum()) / most, last))
        return self.seconds - max(found)[1] if found else 0.0

    def _by_stage(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for i, name in enumerate(self.stages):
            yield name, self.begun[self.stage == i], self.ended[self.stage == i]


def spread(edges: np.ndarray, begun: np.ndarray, ended: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """How much of some amounts falls between each two edges, if each is spread evenly over its time."""
    ended = np.maximum(ended, begun + LEAST_SECONDS)
    rate = amount / (ended - begun)
    return np.diff(_ramp(edges, begun, rate) - _ramp(edges, ended, rate))


def _ramp(edges: np.ndarray, since: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """The sum of rate * (edge - since) over all that lie before an edge."""
    order = np.argsort(since)
    before = np.searchsorted(since[order], edges)
    rates, starts = (np.append(0.0, np.cumsum(x[order])) for x in (rate, rate * since))
    return edges * rates[before] - starts[before]


def _most(begun: np.ndarray, ended: np.ndarray) -> tuple[int, float]:
    """How many spans overlap at most, and when they did last."""
    times = np.concatenate([begun, ended])
    steps = np.repeat([1, -1], len(begun))
    order = np.lexsort((steps, times))  # one that ends makes room for one that begins
    level = np.cumsum(steps[order])
    last = int(np.flatnonzero(level == level.max())[-1])
    return int(level.max()), float(times[order][last + 1])


def _without_pauses(begun: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Times since the first, with long pauses taken out, and where they were."""
    if not len(begun):
        return begun, ended, ()
    order = np.argsort(begun)
    starts, reached = begun[order], np.maximum.accumulate(ended[order])
    idle = starts[1:] - reached[:-1]
    cuts = np.flatnonzero(idle > LONGEST_PAUSE_SECONDS)
    resumed = starts[cuts + 1]
    skipped = starts[0] + np.append(0.0, np.cumsum(idle[cuts]))
    shift = skipped[np.searchsorted(resumed, begun, side="right")]
    return begun - shift, ended - shift, tuple((resumed - skipped[1:]).tolist())
