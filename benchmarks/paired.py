"""Accuracies with their spread, and paired differences, from the rows that `benchmarks.joint` leaves.

A row is a run: what it was (corpus, kind, model, arm, unit, seed), how many `videos` it was tested on, and of
how many it was right. Accuracy is pooled over the cases of a seed, and spread is that of the seeds. A
difference is paired: the same unit (a draw, or a group left out), learned by two arms, over all seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy import stats

WHAT = ("digit", "motion", "right")
PAIRS = (
    ("joint", "video only"),
    ("joint", "half video"),
    ("image -> video", "video only"),
    ("joint", "image -> video"),
)
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Difference:
    """Of accuracies, over units. half_width: of the 95 % interval by Student's t; p: of the sign test."""

    mean: float
    half_width: float
    better: int
    equal: int
    worse: int
    p: float


def accuracies(rows: Rows, what: str) -> list[float]:
    """One for each seed, pooled over its cases."""
    seeds = sorted({row["seed"] for row in rows})
    return [_pooled([row for row in rows if row["seed"] == seed], what) for seed in seeds]


def difference(rows: Rows, arm: str, base: str, what: str) -> Difference | None:
    """What `arm` is better by than `base`, over the units and seeds that both have; None if there is none."""
    of_arm, of_base = ({_pair(row): row for row in rows if row["arm"] == name} for name in (arm, base))
    both = sorted(of_arm.keys() & of_base.keys())
    found = []
    for unit in dict.fromkeys(unit for unit, _ in both):
        keys = [key for key in both if key[0] == unit]
        sides = [[side[key] for key in keys] for side in (of_arm, of_base)]
        found.append(_pooled(sides[0], what) - _pooled(sides[1], what))
    if not found:
        return None
    better, worse = sum(x > 0 for x in found), sum(x < 0 for x in found)
    count = len(found)
    wide = stats.t.ppf(0.975, count - 1) * stdev(found) / math.sqrt(count) if count > 1 else math.inf
    p = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    return Difference(mean(found), wide, better, count - better - worse, worse, p)


def _pair(row: dict[str, Any]) -> tuple[str, int]:
    return row["unit"], row["seed"]


def _pooled(rows: Rows, what: str) -> float:
    return sum(row[what] for row in rows) / sum(row["videos"] for row in rows)


def tables(rows: Rows) -> str:
    """Markdown: what each arm comes to, and by how much one is better than another."""
    lines = [
        "| corpus | training | model | arm | runs | training clips | pictures | digit | motion | **class** |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    groups = list(dict.fromkeys((row["corpus"], row["kind"], row["model"]) for row in rows))
    for group in groups:
        some = [row for row in rows if (row["corpus"], row["kind"], row["model"]) == group]
        for arm in dict.fromkeys(row["arm"] for row in some):
            own = [row for row in some if row["arm"] == arm]
            learned = f"{mean(row['learned'] for row in own):.1%}"
            stills = [row["pictures"] for row in own if row["pictures"] is not None]
            cells = [
                learned,
                f"{mean(stills):.1%}" if stills else "-",
                *(_spread(own, what) for what in WHAT),
            ]
            lines.append(f"| {' | '.join([*group, arm, str(len(own)), *cells])} |")
    lines += [
        "",
        "| corpus | training | model | | digit | motion | **class** | better, equal, worse | sign test |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for group in groups:
        some = [row for row in rows if (row["corpus"], row["kind"], row["model"]) == group]
        for arm, base in PAIRS:
            whole = difference(some, arm, base, "right")
            if whole is None:
                continue
            cells = [_signed(some, arm, base, what) for what in WHAT]
            counts = f"{whole.better}, {whole.equal}, {whole.worse}"
            row = [*group, f"{arm} against {base}", *cells, counts, f"p = {whole.p:.2f}"]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _spread(rows: Rows, what: str) -> str:
    if any(what not in row for row in rows):
        return "-"
    found = accuracies(rows, what)
    return f"{mean(found):.1%}" + (f" ± {stdev(found):.1%}" if len(found) > 1 else "")


def _signed(rows: Rows, arm: str, base: str, what: str) -> str:
    """In points of a hundred, with the 95 % interval."""
    if any(what not in row for row in rows):
        return "-"
    found = difference(rows, arm, base, what)
    assert found is not None
    return f"{100 * found.mean:+.1f} ± {100 * found.half_width:.1f}"
