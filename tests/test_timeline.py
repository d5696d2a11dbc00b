"""When workers had units: the tail, the most at once, what falls between two moments, pauses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jobs.timeline import LONGEST_PAUSE_SECONDS, Timeline, spread
from pipeline.commits import Receipt, Work

START = 1.7e9


def receipt(unit: int, *work: tuple[str, str, float, float], clips: int = 4) -> Receipt:
    pieces = [Work(stage, worker, START + a, START + b, 100) for stage, worker, a, b in work]
    return Receipt(unit, clips=clips, work=pieces)


def test_the_tail_begins_when_not_all_workers_of_the_busiest_stage_have_a_unit() -> None:
    """Three decoders, of which one has a long video at the end; the model is idle most of the time."""
    receipts = [
        receipt(0, ("decode", "a", 0, 10), ("embed", "m", 10, 11)),
        receipt(1, ("decode", "b", 0, 9), ("embed", "m", 9, 9.5)),
        receipt(2, ("decode", "c", 0, 8), ("embed", "m", 8, 8.5)),
        receipt(3, ("decode", "c", 8, 12), ("embed", "m", 12, 13)),
        receipt(4, ("decode", "b", 9, 40), ("embed", "m", 40, 41)),
        receipt(5, ("decode", "a", 10, 15), ("embed", "m", 15, 16)),
    ]
    timeline = Timeline.of(receipts)
    assert timeline.at_once() == {"decode": 3, "embed": 1}
    assert timeline.tail_seconds() == pytest.approx(41 - 12)


def test_a_model_that_is_busy_to_the_end_leaves_no_tail() -> None:
    """Decoders were done long before: that they have nothing to do is no loss."""
    receipts = [
        receipt(
            unit, ("decode", "ab"[unit % 2], unit, unit + 1), ("embed", "m", 10 * unit + 1, 10 * unit + 11)
        )
        for unit in range(6)
    ]
    assert Timeline.of(receipts).tail_seconds() == pytest.approx(0)


def test_workers_that_follow_each_other_are_not_at_work_at_once() -> None:
    """One that died and was replaced, or whose units follow without a gap, counts once."""
    receipts = [receipt(unit, ("shard", f"host:{unit}", unit, unit + 1)) for unit in range(5)]
    timeline = Timeline.of(receipts)
    assert timeline.at_once() == {"shard": 1}
    assert timeline.tail_seconds() == 0
    assert timeline.clips.tolist() == [4] * 5


def test_nothing_and_records_of_earlier_versions() -> None:
    timeline = Timeline.of([Receipt(0, clips=5)])
    assert (len(timeline), timeline.seconds, timeline.tail_seconds(), timeline.at_once()) == (0, 0, 0, {})


def test_pauses_between_calls_are_left_out() -> None:
    day = 86_400.0
    receipts = [
        receipt(0, ("shard", "a", 0, 10)),
        receipt(1, ("shard", "b", 5, 12)),
        receipt(2, ("shard", "a", 12 + LONGEST_PAUSE_SECONDS - 1, 50)),  # merely slow
        receipt(3, ("shard", "c", day, day + 3)),
        receipt(4, ("shard", "d", day + 1, day + 2)),
        receipt(5, ("shard", "e", 3 * day, 3 * day + 1)),
    ]
    timeline = Timeline.of(receipts)
    slow = 12 + LONGEST_PAUSE_SECONDS - 1
    assert timeline.begun.tolist() == pytest.approx([0, 5, slow, 50, 51, 53], abs=1e-4)
    assert timeline.ended.tolist() == pytest.approx([10, 12, 50, 53, 52, 54], abs=1e-4)
    assert timeline.pauses == pytest.approx((50, 53), abs=1e-4)
    assert timeline.seconds == pytest.approx(54, abs=1e-4)


def test_a_clock_that_was_set_back_does_not_turn_time_round() -> None:
    timeline = Timeline.of([receipt(0, ("shard", "a", 10, 4)), receipt(1, ("shard", "a", 11, 12))])
    assert (timeline.ended > timeline.begun).all()
    assert timeline.at_once() == {"shard": 1}
    assert timeline.tail_seconds() == 0


def test_amounts_are_spread_over_their_time() -> None:
    edges = np.linspace(0, 10, 6)
    begun, ended = np.array([0.0, 1.0, 7.0, 3.0]), np.array([10.0, 3.0, 7.0, 4.0])
    found = spread(edges, begun, ended, np.array([10.0, 4.0, 5.0, 1.0]))
    assert found == pytest.approx([2 + 2, 2 + 2 + 1, 2, 2 + 5, 2])
    random = np.random.default_rng(0)
    begun = random.uniform(0, 90, 1000)
    ended = begun + random.exponential(3, 1000)
    edges = np.linspace(0, ended.max(), 50)
    direct = [
        np.clip(np.minimum(ended, b) - np.maximum(begun, a), 0, None).sum()
        for a, b in itertools.pairwise(edges)
    ]
    assert spread(edges, begun, ended, ended - begun) == pytest.approx(direct)
