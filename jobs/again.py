"""Later generations of a job's plan: inputs that have arrived or changed, and those that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.frozen import Durations, FrozenPlan, Source, packed
from jobs.spec import EmbedSpec, ShardSpec
from pipeline import generations
from pipeline.commits import Run
from pipeline.corpus import open_input
from pipeline.errors import SpecError
from pipeline.generations import Item, Void
from pipeline.keys import NO_VERSION, Keys, doubled, keys_of, versions_of
from pipeline.parts import live_failures
from pipeline.storage import version_of
from pipeline.units import REDOES, units_of

SPAN = ("uri", "start_seconds", "end_seconds")
Span = tuple[str, float | None, float | None]  # an input's values in these columns


@dataclass
class Redo:
    """What to do again: items that gave no row, and units whose rows are to be replaced as a whole."""

    items: set[Item] = field(default_factory=set)
    units: set[int] = field(default_factory=set)


def extend(
    run: Run, spec: ShardSpec | EmbedSpec, plan: FrozenPlan, source: Source, durations: Durations
) -> tuple[int, int]:
    """Freeze what has come to the input since it was frozen, and what has changed; (how many of each).

    Raises:
        SpecError: the input cannot be extended.
    """
    if source.corpus is None:
        problem = "the shards of a job are fixed; embed what has come to them into a folder of its own"
        raise SpecError("--extend", source.root, problem)
    known = _known(run, plan)
    changed: dict[Span, str] = {}
    new = 0

    def arrived() -> Iterator[pa.Table]:
        nonlocal new
        assert source.corpus is not None
        for chunk in source.corpus.chunks:
            keys, versions = keys_of(chunk), versions_of(chunk)
            found, before = known.find(keys)
            differs = found & (versions != NO_VERSION) & (before != NO_VERSION) & (versions != before)
            for row in chunk.filter(pa.array(differs)).select([*SPAN, "version"]).to_pylist():
                changed[row["uri"], row["start_seconds"], row["end_seconds"]] = row["version"]
            fresh = _like_planned(chunk.filter(pa.array(~found)), plan, source.root)
            new += fresh.num_rows
            if fresh.num_rows:
                yield fresh

    def altered() -> Iterator[pa.Table]:
        if changed:
            void = generations.void(run.place, plan.generations)
            redo = _holding(run, plan, changed, void)
            yield from _redone(run, spec, plan, redo, void, durations, lambda span: changed.get(span))

    tables = chain(packed(spec, arrived(), plan, durations), altered())
    generations.write(run, plan.generations, tables, plan.generations[0].settings)
    return new, len(changed)


def retry(run: Run, spec: ShardSpec | EmbedSpec, plan: FrozenPlan, durations: Durations) -> int:
    """Freeze what failed, to be done again; how many inputs, or parts of one, that is.

    An input that gave some of its clips is done again together with its unit, whose rows are then replaced.
    """
    void = generations.void(run.place, plan.generations)
    redo = Redo()
    for row in live_failures(run, run.committed(), void).to_pylist():
        if row["item"] is None or row["rows"]:
            redo.units.add(row["unit"])
        else:
            redo.items.add((row["unit"], row["item"]))
    redo.items = {(unit, item) for unit, item in redo.items if unit not in redo.units}

    def version_now(span: Span) -> str | None:
        try:
            return version_of(open_input(plan.root, span[0]), spec.input.identity)
        except (OSError, pa.ArrowException):
            return None

    tables = _redone(run, spec, plan, redo, void, durations, version_now)
    generations.write(run, plan.generations, tables, plan.generations[0].settings)
    return len(redo.items) + len(redo.units)


def _known(run: Run, plan: FrozenPlan) -> Keys:
    """Every input of the plan, with the version that was frozen last."""
    known = Keys()
    for generation in reversed(plan.generations):
        for table in generations.units(run.place, generation, ["items"]):
            items = generations.items_of(table)
            items = items.filter(pc.equal(items["first_clip"], 0))
            keys = keys_of(items)
            fresh = ~doubled(keys, known)
            known.add(keys[fresh], versions_of(items)[fresh])
    return known


def _like_planned(chunk: pa.Table, plan: FrozenPlan, root: str) -> pa.Table:
    """Inputs with the columns that the plan's have, in the same types."""
    own = {field.name for field in plan.extra}
    now = {
        name
        for name in chunk.column_names
        if name not in {"media", "version"} and name not in plan.items.names
    }
    lost = own - set(chunk.column_names)
    if now or lost:
        problem = (
            f"has other columns than it had ({', '.join(sorted(now | lost))}); keep them, or use a new folder"
        )
        raise SpecError("input.path", root, problem)
    kinds = [
        plan.items.field(name) if name in own else chunk.schema.field(name) for name in chunk.column_names
    ]
    try:
        return chunk.cast(pa.schema(kinds))
    except pa.ArrowException as error:
        text = " ".join(str(error).split())
        raise SpecError("input.path", root, f"a column has another type than it had: {text}") from None


def _holding(run: Run, plan: FrozenPlan, changed: dict[Span, str], void: Void) -> Redo:
    """Where inputs lie that have changed."""
    failures = live_failures(run, run.committed(), void)
    rows = zip(*(failures[name].to_pylist() for name in ("unit", "item", "rows")), strict=True)
    empty = {(unit, item) for unit, item, kept in rows if item is not None and not kept}
    redo = Redo()
    sought = Keys()
    keys = keys_of(pa.table(dict(zip(SPAN, zip(*changed, strict=True), strict=True))))
    sought.add(keys, np.zeros(len(keys), np.int64))
    for generation in plan.generations:
        for table in generations.units(run.place, generation, ["unit", "items"]):
            if not sought.find(keys_of(generations.items_of(table)))[0].any():
                continue
            for unit, items in zip(table["unit"].to_pylist(), table["items"].to_pylist(), strict=True):
                if unit in void.units:
                    continue
                for number, item in enumerate(items):
                    if _span(item) not in changed or (unit, number) in void.items:
                        continue
                    if (unit, number) in empty:
                        redo.items.add((unit, number))
                    else:
                        redo.units.add(unit)
    redo.items = {(unit, item) for unit, item in redo.items if unit not in redo.units}
    return redo


def _redone(
    run: Run,
    spec: ShardSpec | EmbedSpec,
    plan: FrozenPlan,
    redo: Redo,
    void: Void,
    durations: Durations,
    version_now: Callable[[Span], str | None],
) -> Iterator[pa.Table]:
    """Units that take the place of others, or of items of others."""
    wanted = pa.array(sorted(redo.units | {unit for unit, _ in redo.items}), pa.int64())
    whole: list[pa.Table] = []  # inputs, to be packed anew: how long they are may be known only now

    def copies() -> Iterator[pa.Table]:
        for generation in plan.generations if len(wanted) else ():
            for table in generations.units(run.place, generation):
                for row in table.filter(pc.is_in(table["unit"], wanted)).to_pylist():
                    items = list(_again(row, redo, void, version_now))
                    alone = [i for i in items if row["unit"] not in redo.units and _is_whole(i)]
                    if alone:
                        inputs = pa.Table.from_pylist(alone, schema=pa.schema(list(plan.items)))
                        inputs = inputs.drop_columns(
                            [n for n in ("first_clip", "stop_clip") if n in inputs.column_names]
                        )
                        whole.append(inputs.append_column("media", pa.array([row["media"]] * len(alone))))
                    kept = [item for item in items if item not in alone]
                    if kept:
                        table_of = pa.Table.from_pylist(kept, schema=pa.schema(list(plan.items)))
                        clips = np.full(len(kept), max(1, row["clips"] // len(row["items"])))
                        yield units_of(table_of, row["media"], clips, np.zeros(1, np.int64))

    yield from copies()
    yield from packed(spec, whole, plan, durations)


def _again(
    row: dict[str, Any], redo: Redo, void: Void, version_now: Callable[[Span], str | None]
) -> Iterator[dict[str, Any]]:
    """The items of a unit that are to be done again."""
    unit = row["unit"]
    for number, item in enumerate(row["items"]):
        if (unit, number) in void.items or (unit not in redo.units and (unit, number) not in redo.items):
            continue
        item.update(zip(REDOES, (unit, number), strict=True))
        if item.get("version") is not None:
            item["version"] = version_now(_span(item)) or item["version"]
        yield item


def _is_whole(item: dict[str, Any]) -> bool:
    return item.get("first_clip") == 0 and item["stop_clip"] is None


def _span(item: dict[str, Any]) -> Span:
    return item["uri"], item.get("start_seconds"), item.get("end_seconds")
