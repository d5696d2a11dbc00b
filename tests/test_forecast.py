"""From a sample to a whole, and from work to time: what has to hold whatever the numbers are."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.forecast import Figure, Stage, counted, exactly, expanded, forecast, total

seconds = st.floats(0, 1e6, allow_nan=False)
workers = st.integers(1, 1000)


@st.composite
def stages(draw: st.DrawFn) -> list[Stage]:
    cores = draw(st.integers(1, 64))
    return [
        Stage(name, draw(seconds), draw(seconds), draw(workers), cores)
        for name in draw(st.sampled_from([("decode",), ("model",), ("decode", "model")]))
    ]


@given(stages(), st.integers(1, 10_000), st.booleans(), st.integers(0, 1), st.integers(1, 50))
def test_more_workers_are_never_slower(
    some: list[Stage], units: int, beside: bool, which: int, more: int
) -> None:
    before = forecast(some, units, 5.0, beside=beside)
    which %= len(some)
    one = some[which]
    some[which] = Stage(one.name, one.seconds, one.cpu_seconds, one.workers + more, one.cores)
    assert forecast(some, units, 5.0, beside=beside).wall_seconds <= before.wall_seconds + 1e-6


@given(stages(), st.integers(1, 10_000), st.booleans())
def test_it_takes_as_long_as_the_slowest_and_no_longer_than_one_after_the_other(
    some: list[Stage], units: int, beside: bool
) -> None:
    found = forecast(some, units, 5.0, beside=beside)
    slowest = max(found.bounds_seconds.values())
    one_by_one = sum(max(one.seconds, one.cpu_seconds / one.cores) for one in some)
    assert 5.0 + slowest <= found.wall_seconds + 1e-6
    assert found.wall_seconds <= 5.0 + one_by_one * (1 + 1e-9)
    assert found.bottleneck in {one.name for one in some}
    assert ("cores" in found.bounds_seconds) == (beside and len(some) > 1)


def test_the_bottleneck_is_the_slower_stage() -> None:
    """Ten decoders do in ten seconds what one of them does in a hundred; the model takes 40 s, or 5 s."""
    for model_seconds, slowest, wall_seconds in ((40.0, "model", 40 + 0.1), (5.0, "decode", 10 + 0.005)):
        some = [Stage("decode", 100.0, 100.0, 10, 64), Stage("model", model_seconds, 1.0, 1, 64)]
        found = forecast(some, 1000, 2.0, beside=True)
        assert (found.bottleneck, found.cores_decide) == (slowest, False)
        assert found.wall_seconds == pytest.approx(2.0 + wall_seconds)


def test_stages_on_the_same_cores_add_up_and_on_nodes_of_their_own_do_not() -> None:
    some = [Stage("decode", 8.0, 8.0, 1, 2), Stage("model", 16.0, 32.0, 1, 2)]
    together = forecast(some, 1 << 20, 0.0, beside=True)
    assert (together.bottleneck, together.cores_decide) == ("model", True)
    assert together.wall_seconds == pytest.approx(20.0)
    assert forecast(some, 1 << 20, 0.0, beside=False).wall_seconds == pytest.approx(16.0, rel=1e-4)


def test_workers_take_whole_units() -> None:
    """Three units of ten seconds: two workers need twenty, as does the third that is missing."""
    took = [
        forecast([Stage("decode", 30.0, 3.0, n, 8)], 3, 0.0, beside=False).wall_seconds for n in (1, 2, 3)
    ]
    assert took == pytest.approx([30.0, 20.0, 10.0])


def test_nothing_to_do_takes_as_long_as_starting() -> None:
    found = forecast([Stage("decode", 0.0, 0.0, 1, 2)], 0, 3.0, beside=False)
    assert (found.wall_seconds, found.bottleneck, found.bounds_seconds) == (3.0, None, {})


def test_what_was_looked_at_as_a_whole_is_known() -> None:
    assert expanded([2, 2, 2], [2, 0, 1], exactly(6.0), 3) == exactly(3.0)
    assert counted([3, 5], 8.0, 2) == exactly(8.0)


def test_a_single_input_tells_no_spread_and_none_tells_nothing() -> None:
    assert expanded([2], [1], exactly(20.0), 10) == Figure(10.0)
    assert expanded([], [], exactly(20.0), 10) == Figure(0.0)
    assert counted([3], 30.0, 10) == Figure(30.0)


def test_a_sample_in_which_nothing_is_missing_promises_nothing() -> None:
    """The rule of three: of 30 good ones follows that no more than a tenth is bad."""
    found = expanded([4.0] * 30, [4.0] * 30, exactly(4000.0), 1000)
    assert (found.value, found.low, found.high) == (4000.0, pytest.approx(3600.0), 4000.0)


def test_the_truth_is_mostly_in_the_spread() -> None:
    """Of corpora a tenth of which fails, with inputs of many lengths: 95 % is what is promised."""
    draw = random.Random(0)
    held = 0
    for _ in range(300):
        sizes = [float(draw.randint(1, 20)) for _ in range(400)]
        amounts = [0.0 if draw.random() < 0.1 else size * draw.uniform(0.8, 1.2) for size in sizes]
        picked = draw.sample(range(400), 60)
        found = expanded(
            [sizes[k] for k in picked], [amounts[k] for k in picked], exactly(sum(sizes)), len(sizes)
        )
        assert found.low is not None
        assert found.high is not None
        held += found.low <= sum(amounts) <= found.high
    assert 0.9 < held / 300 < 1


def test_windows_that_differ_spread_the_count() -> None:
    same, different = counted([5.0] * 9, 500.0, 100), counted([1.0, 9.0] * 8, 500.0, 100)
    assert same == exactly(500.0)
    assert different.low is not None
    assert different.high is not None
    assert 0 < different.low < 420
    assert different.high - 500 == pytest.approx(500 - different.low)


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=5))
def test_errors_of_a_sum_add_up_as_squares(ends: list[tuple[float, float]]) -> None:
    some = [Figure(value, value - error, value + error) for value, error in ends]
    found = total(some)
    assert found.value == pytest.approx(sum(value for value, _ in ends))
    assert found.high is not None
    assert found.high - found.value == pytest.approx(math.hypot(*(error for _, error in ends)), abs=1e-6)
    assert total([*some, Figure(1.0)]).low is None
