"""Every clip once an epoch, in an order that depends on the seed and the step alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.order import Order, shares

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)


@given(COUNTS, st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 40))
def test_each_epoch_holds_every_clip_once(
    counts: list[int], seed: int, window_shards: int, size: int
) -> None:
    order = Order(counts, seed, window_shards)
    parts = [order.at(range(start, start + size)) for start in range(0, 3 * order.clips, size)]
    epochs, clips = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    for epoch in range(3):
        assert sorted(clips[epochs == epoch]) == list(range(order.clips))
    assert (np.diff(epochs) >= 0).all()


@given(COUNTS, st.integers(0, 2**32), st.integers(1, 5), st.data())
def test_any_part_is_the_same_however_it_is_asked_for(
    counts: list[int], seed: int, window_shards: int, data: st.DataObject
) -> None:
    whole = Order(counts, seed, window_shards).at(range(2 * sum(counts)))
    start = data.draw(st.integers(0, 2 * sum(counts) - 1))
    stop = data.draw(st.integers(start + 1, 2 * sum(counts)))
    part = Order(counts, seed, window_shards).at(range(start, stop))
    for ours, theirs in zip(part, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs[start:stop])


def test_clips_are_mixed_within_a_window_and_shards_over_all() -> None:
    order = Order([100] * 8, seed=0, window_shards=2)
    _, clips = order.at(range(800))
    windows = clips.reshape(4, 200) // 100  # by shard
    assert [len(set(window)) for window in windows] == [2] * 4
    changes = (np.diff(windows, axis=1) != 0).mean()
    assert changes == pytest.approx(0.5, abs=0.1)
    others = [Order([100] * 8, seed, 2).at(range(800))[1] for seed in range(1, 4)]
    assert all((clips != other).mean() > 0.9 for other in others)
    assert (order.at(range(800, 1600))[1] != clips).mean() > 0.9


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="without clips"):
        Order([0, 0], seed=0)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(1, 8), st.integers(6, 64))
def test_shares_are_whole_and_near_the_weights(weights: list[float], multiple: int, parts: int) -> None:
    found = shares(weights, parts * multiple, multiple)
    assert sum(found) == parts * multiple
    assert all(share >= multiple and share % multiple == 0 for share in found)
    wanted = np.asarray(weights) / sum(weights) * parts * multiple
    if (wanted >= multiple).all():
        assert (np.abs(wanted - found) < multiple).all()


def test_shares_that_cannot_be() -> None:
    for weights, batch, multiple in (([1, 1], 1, 1), ([1, 1, 1], 4, 2), ([1], 7, 2)):
        with pytest.raises(ValueError, match="cannot be shared out"):
            shares(weights, batch, multiple)
