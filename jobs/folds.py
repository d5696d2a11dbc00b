"""Which videos a probe learns from, and which it is then asked about: one split, or each group in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.embedded import Embedded
from jobs.questions import ProbeSpec
from pipeline.errors import SpecError, SpecListError

HELD_OUT = 0.2  # of the training videos, to choose the weight decay on


@dataclass(frozen=True)
class Fold:
    """name: of the group that is left out, or of the test split. test: int64 rows of `known`, of `count`."""

    name: str
    test: np.ndarray
    count: int

    @property
    def train(self) -> np.ndarray:
        """int64: all other rows. Not kept, as there may be many folds."""
        others = np.ones(self.count, bool)
        others[self.test] = False
        return np.flatnonzero(others)


def asked(spec: ProbeSpec, embedded: Embedded) -> Embedded:
    """Those videos that a spec has to do with. SpecError if a split has none."""
    if spec.split is None:
        return embedded
    splits = embedded.known["split"]
    for field, name in spec.split:
        if not pc.any(pc.equal(splits, name)).as_py():
            there = ", ".join(repr(x) for x in pc.unique(splits).to_pylist() if x is not None)
            problem = f"no video has it; there are {there}" if there else "no video has a split"
            raise SpecError(f"split.{field}", name, f"{problem}; or set leave_out: group")
    wanted = pc.is_in(splits, pa.array([spec.split.train, spec.split.test]))
    return replace(embedded, known=embedded.known.filter(wanted).combine_chunks())


def folds(spec: ProbeSpec, embedded: Embedded) -> list[Fold]:
    """One for a split; of groups one each, by name: what is tested there belongs to that group alone.

    Raises:
        SpecError: a video has no group, or all have the same.
    """
    known = embedded.known
    if spec.split is not None:
        test = pc.equal(known["split"], spec.split.test).to_numpy()
        return [Fold(spec.split.test, np.flatnonzero(test), len(embedded))]
    groups = known["group"]
    if groups.null_count:
        first = known["clip_id"][groups.is_null().combine_chunks().index(True).as_py()].as_py()
        some = f"{groups.null_count:,} of {len(embedded):,} videos, the first of them {first}, have no group"
        raise SpecListError([f"leave_out = 'group': {some}: name it in the table of the input, or use split"])
    numbers = groups.combine_chunks().dictionary_encode()
    if len(numbers.dictionary) < 2:
        name = numbers.dictionary[0].as_py()
        raise SpecListError([f"leave_out = 'group': all videos are of group {name!r}; use split"])
    group_of = numbers.indices.to_numpy()
    every = enumerate(numbers.dictionary.to_pylist())
    return [
        Fold(name, np.flatnonzero(group_of == k), len(embedded))
        for k, name in sorted(every, key=lambda pair: pair[1])
    ]


def apart(embedded: Embedded) -> pa.DictionaryArray:
    """What no two videos may share of which one is asked about: their group or, without, their file."""
    names = pc.coalesce(embedded.known["group"], embedded.known["uri"])
    return names.combine_chunks().dictionary_encode()


def on_both_sides(embedded: Embedded, fold: Fold) -> list[str]:
    """Groups, and files, of which videos are learned from while others are asked about."""
    names = apart(embedded)
    numbers = names.indices.to_numpy()
    shared = np.intersect1d(numbers[fold.train], numbers[fold.test])
    return names.dictionary.take(pa.array(shared)).to_pylist()


def hold_out(apart_N: np.ndarray, seed: int) -> np.ndarray:
    """bool (N,): about a fifth of some videos, by whole groups that the seed draws; none if there is one."""
    _, numbers, counts = np.unique(apart_N, return_inverse=True, return_counts=True)
    drawn = np.random.default_rng(seed).permutation(len(counts))
    chosen: list[int] = []
    room = HELD_OUT * len(apart_N)
    for k in drawn if len(counts) > 1 else ():
        if counts[k] <= room:
            chosen.append(int(k))
            room -= counts[k]
    if not chosen and len(counts) > 1:  # all of them are larger than a fifth
        chosen = [int(counts.argmin())]
    return np.isin(numbers, chosen)
