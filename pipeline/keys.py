"""Which inputs are known: 24 bytes each, however long their names are, so that 10^8 of them fit a driver."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

RUN_ROWS = 1 << 22
# Of an input without a version: it never counts as changed.
NO_VERSION = 0


def keys_of(inputs: pa.Table) -> np.ndarray:
    """int64 (rows, 2): 128 bits for each input's uri and span.

    Python's keyed hash of two texts that differ, so good within this process only. That two inputs of 10^8
    share both has a probability of 10^-23.
    """
    columns = [inputs[name].to_pylist() for name in ("uri", "start_seconds", "end_seconds")]
    names = [f"{uri}\n{start}\n{end}" for uri, start, end in zip(*columns, strict=True)]
    first = np.fromiter(map(hash, names), np.int64, len(names))
    second = np.fromiter((hash(name + "\n") for name in names), np.int64, len(names))
    return np.stack([first, second], axis=1)


def versions_of(inputs: pa.Table) -> np.ndarray:
    """int64 (rows,): a hash of each input's version, or NO_VERSION."""
    versions = inputs["version"].to_pylist()
    return np.fromiter((NO_VERSION if v is None else hash(v) | 1 for v in versions), np.int64, len(versions))


class Keys:
    """A set of inputs, each with the hash of its version."""

    def __init__(self) -> None:
        # Sorted by the first half of the keys; a run is merged into the one before when it has grown as long,
        # up to a length whose copies, while that is done, are small beside all.
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)

    def add(self, keys: np.ndarray, versions: np.ndarray) -> None:
        """Add inputs that are not in it yet."""
        while self._runs and len(self._runs[-1][0]) <= len(keys) <= RUN_ROWS // 2:
            more_keys, more_versions = self._runs.pop()
            keys, versions = np.concatenate([more_keys, keys]), np.concatenate([more_versions, versions])
        if not len(keys):
            return
        order = np.argsort(keys[:, 0], kind="stable")
        self._runs.append((keys[order], versions[order]))

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bool (rows,): is it in here; int64 (rows,): the hash of its version, NO_VERSION if not)."""
        found = np.zeros(len(keys), bool)
        versions = np.full(len(keys), NO_VERSION, np.int64)
        for known, theirs in self._runs:
            left = np.searchsorted(known[:, 0], keys[:, 0])
            for at in (left, left + 1):  # two may share the first half
                at = np.where(at < len(known), at, 0)
                here = (known[at] == keys).all(axis=1)
                found |= here
                versions[here] = theirs[at[here]]
        return found, versions


def doubled(keys: np.ndarray, known: Keys) -> np.ndarray:
    """bool (rows,): True where a key is in `known`, or is an earlier row's."""
    mask = known.find(keys)[0]
    first = np.unique(keys, axis=0, return_index=True)[1]
    again = np.ones(len(keys), bool)
    again[first] = False
    return mask | again
