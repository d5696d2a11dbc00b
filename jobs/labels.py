"""From the names that clips are labelled with, and captions, to the numbers that are learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SpecListError

Classes = Mapping[str, tuple[str, ...]]  # of each head, in the order of its logits


class Labelled(Protocol):
    """Clips, a row of `known` each, with their `clip_id` and `labels`; `name` is what a spec calls them."""

    @property
    def name(self) -> str: ...

    @property
    def known(self) -> pa.Table: ...

    def __len__(self) -> int: ...


def classes_of(
    datasets: Mapping[str, Labelled], heads: Mapping[str, str], known: Classes
) -> dict[str, tuple[str, ...]]:
    """The classes of each head: a checkpoint's, `known`, if they are enough, else all that occur, sorted."""
    found: dict[str, set[str]] = {}
    for name, dataset in datasets.items():
        names = pc.unique(_flat(dataset)).to_pylist()
        found.setdefault(heads[name], set()).update(names)
    return {
        head: known[head] if head in known and names <= set(known[head]) else tuple(sorted(names))
        for head, names in found.items()
    }


def targets(dataset: Labelled, classes: Sequence[str], *, multi_label: bool) -> np.ndarray:
    """Of each clip: int64 (N,) class, or float32 (N, C) zeros and ones if `multi_label`.

    Raises:
        SpecError: a clip has no label, more than one (unless `multi_label`), or one that is no class.
    """
    lists = dataset.known["labels"].combine_chunks()
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    wrong = counts == 0 if multi_label else counts != 1
    if wrong.any():
        clip = dataset.known["clip_id"][int(np.flatnonzero(wrong)[0])].as_py()
        some = f"{int(wrong.sum()):,} of {len(dataset):,} clips, the first of them {clip}, have"
        problem = "no label" if multi_label or counts[wrong][0] == 0 else "several labels"
        remedy = "name a split that is labelled, or have `labels` in the table of the input"
        if problem == "several labels":
            remedy = "set multi_label (of a training job: recipe.multi_label)"
        raise SpecListError([f"{dataset.name}: {some} {problem}: {remedy}"])
    numbers = pc.index_in(_flat(dataset), pa.array(list(classes), pa.string()))
    if numbers.null_count:
        stranger = pc.unique(_flat(dataset).filter(pc.is_null(numbers)))[0].as_py()
        problem = f"label {stranger!r} is none of the {len(classes)} classes that are trained"
        raise SpecListError([f"{dataset.name}: {problem}"])
    flat = numbers.to_numpy(zero_copy_only=False).astype(np.int64)
    if not multi_label:
        return flat
    marked = np.zeros((len(dataset), len(classes)), np.float32)
    marked[np.repeat(np.arange(len(dataset)), counts), flat] = 1
    return marked


def captions(datasets: Mapping[str, Labelled]) -> tuple[list[str], dict[str, np.ndarray]]:
    """All captions, each once; and of each dataset's clips which of them is theirs: int64 (N,).

    SpecError if a clip has none.
    """
    columns = {name: dataset.known["caption"].combine_chunks() for name, dataset in datasets.items()}
    for name, column in columns.items():
        missing = pc.equal(pc.fill_null(column, ""), "").to_numpy(zero_copy_only=False)
        if missing.any():
            dataset = datasets[name]
            clip = dataset.known["clip_id"][int(np.flatnonzero(missing)[0])].as_py()
            some = (
                f"{int(missing.sum()):,} of {len(dataset):,} clips, the first of them {clip}, have no caption"
            )
            remedy = "have `caption` in the table of the input, or set recipe.contrast.against to classes"
            raise SpecListError([f"{dataset.name}: {some}: {remedy}"])
    texts = pc.unique(pa.chunked_array(list(columns.values())))
    numbers = {
        name: pc.index_in(column, texts).to_numpy().astype(np.int64) for name, column in columns.items()
    }
    return texts.to_pylist(), numbers


def _flat(dataset: Labelled) -> pa.Array:
    """All labels of all clips, one after the other."""
    return pc.list_flatten(dataset.known["labels"].combine_chunks())
