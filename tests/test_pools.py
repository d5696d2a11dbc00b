"""Pools on Ray Data: what waits between them is bounded, and what can never go on says so."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

from jobs.cluster import cores
from pipeline.commits import Receipt
from pipeline.errors import SpecError, StorageError
from pipeline.pools import (
    Patience,
    Pool,
    StageError,
    StalledError,
    Standing,
    driver_seconds,
    most_actors,
    run_pools,
)
from pipeline.storage import Location, locate

PATIENT = Patience(120, 240)


def plan_of(folder: Path, units: int) -> Location:
    pq.write_table(pa.table({"unit": range(units)}), folder / "plan.parquet", row_group_size=8)
    return locate(str(folder / "plan.parquet"))


# Within functions, so that workers get them by value: they cannot import this file.
def stages() -> tuple[type, type]:
    class Work:
        """Takes its time for a unit, and leaves a note of it."""

        def __init__(self, folder: str, seconds: float):
            self.folder, self.seconds = Path(folder), seconds

        def work(self, units: pa.Table, note: str) -> None:
            assert units.num_rows == 1
            time.sleep(self.seconds)
            (self.folder / f"{note}-{units['unit'][0]}").touch()

    class Make(Work):
        """Makes a megabyte of a unit."""

        def __call__(self, units: pa.Table) -> pa.Table:
            self.work(units, "made")
            return units.append_column("data", pa.array([bytes(1 << 20)], pa.large_binary()))

    class Finish(Work):
        def __call__(self, units: pa.Table) -> pa.Table:
            self.work(units, "finished")
            return pa.table({"receipt": [Receipt(units["unit"][0].as_py()).to_json()]})

    return Make, Finish


def test_a_slow_stage_holds_the_one_before_it_back(local_ray: None, tmp_path: Path) -> None:
    make, finish = stages()
    notes = tmp_path / "notes"
    notes.mkdir()
    makers, finishers = 2, 1
    pools = [
        Pool(make, (str(notes), 0.0), makers, 0.5),
        Pool(finish, (str(notes), 0.15), finishers, 0.5),
    ]
    mine = ray.data.DataContext.get_current()
    before = repr(mine)
    units, waiting, states = [], [], []
    standing = Standing()
    for receipt in run_pools(plan_of(tmp_path, 60), pools, None, PATIENT, standing):
        units.append(receipt.unit)
        states.append(standing.pools)
        finished = len(list(notes.glob("finished-*")))  # first, for it only grows
        waiting.append(len(list(notes.glob("made-*"))) - finished)
        assert ray.data.DataContext.get_current() is mine  # a notebook's own settings
    assert repr(mine) == before
    assert sorted(units) == list(range(60))
    # A unit more for each that was finished between the two looks.
    assert max(waiting) <= 2 * makers + 3 * finishers + 2
    assert max(waiting) >= finishers + 1  # and the slow stage has always something to do
    # Whoever shows how the pools stand is told of it all along.
    for number, (made, done) in enumerate(states):
        assert (made.stage, done.stage) == ("make", "finish")
        assert made.wanted in {0, makers}  # none any more when all is made
        assert done.wanted in {0, finishers}
        assert number <= done.done + 1
        assert done.done <= made.done <= 60
        assert max(made.at_work, made.workers) <= makers
        assert max(done.at_work, done.workers) <= finishers
    assert any(done.at_work == 1 and done.waiting for _, done in states)


@pytest.mark.slow
def test_a_pool_of_a_range_grows_with_its_work(local_ray: None, tmp_path: Path) -> None:
    make, finish = stages()
    pools = [Pool(make, (str(tmp_path), 0.0), 1, 0.1), Pool(finish, (str(tmp_path), 0.4), 3, 0.1, least=1)]
    standing = Standing()
    workers = [
        standing.pools[1].workers for _ in run_pools(plan_of(tmp_path, 120), pools, None, PATIENT, standing)
    ]
    assert len(workers) == 120
    assert workers[0] == 1
    assert max(workers) == 3


@pytest.mark.parametrize("seconds", [0.05, 1.0, 11.5, 184.0, 4000.0])
def test_one_driver_leads_as_many_as_keep_half_of_it_busy(seconds: float) -> None:
    actors = most_actors(seconds)
    assert driver_seconds(1, actors) * actors / seconds <= 0.5 or actors == 1
    assert driver_seconds(1, actors + 1) * (actors + 1) / seconds > 0.5


def test_workers_may_hold_every_core(local_ray: None, tmp_path: Path) -> None:
    """Ray's own tasks find a place beside them, as they must when a node is lost and its workers move in."""
    _, finish = stages()
    everything = Pool(finish, (str(tmp_path), 0.0), cores() + 1, 1.0)
    assert len(list(run_pools(plan_of(tmp_path, 20), [everything], None, PATIENT))) == 20


@pytest.mark.slow
def test_workers_that_cannot_be_placed_end_the_run(local_ray: None, tmp_path: Path) -> None:
    make, finish = stages()
    pools = [Pool(make, (str(tmp_path), 0.0), 1, 0.5), Pool(finish, (str(tmp_path), 0.0), 1, 0, 1.0)]
    begun = time.monotonic()
    with pytest.raises(
        StalledError, match=r"1 of 1 workers of .*Finish.* are missing; .*0 GPUs: add"
    ) as error:
        list(run_pools(plan_of(tmp_path, 10), pools, None, Patience(10, 240)))
    assert "\n" not in str(error.value)
    assert time.monotonic() - begun < 120


@pytest.mark.slow
def test_a_stage_that_hangs_ends_the_run(local_ray: None, tmp_path: Path) -> None:
    _, finish = stages()
    with pytest.raises(
        StalledError, match=r"no unit was finished for 1\d s, longer than .*; what is committed"
    ) as error:
        list(
            run_pools(
                plan_of(tmp_path, 2), [Pool(finish, (str(tmp_path), 600.0), 1, 0.5)], None, Patience(90, 12)
            )
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("raised", "comes"),
    [
        (StorageError("/x: cannot be written"), StorageError("/x: cannot be written")),
        (SpecError("a.b", 1, "too small"), SpecError("a.b", 1, "too small")),
        (KeyError("a"), StageError("KeyError: 'a'")),
    ],
)
def test_what_a_stage_raises_comes_back_in_one_line(
    local_ray: None, tmp_path: Path, raised: Exception, comes: Exception
) -> None:
    class Fail:
        def __call__(self, units: pa.Table) -> pa.Table:
            raise raised

    with pytest.raises((StorageError, SpecError, StageError)) as error:
        list(run_pools(plan_of(tmp_path, 2), [Pool(Fail, (), 1, 0.5)], None, PATIENT))
    assert isinstance(error.value, type(comes))
    assert str(error.value) == str(comes)
