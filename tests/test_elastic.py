"""Training with (least, most) workers on a simulated cluster that grows, and then loses a node."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import tiny_shards
from rich.console import Console

from jobs import checkpoints, workers
from jobs.metrics import Row
from jobs.progress import Progress
from jobs.spec import TrainSpec, load
from jobs.train import run_train

pytestmark = pytest.mark.slow
STORE = {"object_store_memory": 150 << 20}
ONE = {"num_cpus": 1, **STORE}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without cores, and one node with one."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **STORE})
    made.add_node(**ONE)
    yield made
    made.shutdown()


class Weather(Progress):
    """Adds a node after the first checkpoint, and takes it away when two workers have made another."""

    def __init__(self, cluster: Any, run: Path):
        super().__init__(Console(file=io.StringIO()))
        self._cluster, self._run = cluster, run
        self._node: Any = None
        self._known = 0  # checkpoints, when there was something new
        self.seen: list[int] = []  # how many workers there were at each checkpoint that was waited for

    def trained(self, row: Row, steps: int) -> None:
        last = max(checkpoints.steps(self._run), default=0)
        wanted = (1, 2, 1)[min(len(self.seen), 2)]
        if at_work() != wanted:
            self._known = last
        elif last > self._known and len(self.seen) < 3:
            self.seen.append(wanted)
            self._known = last
            if wanted == 2:
                self._cluster.remove_node(self._node, allow_graceful=False)
            elif self._node is None:
                self._node = self._cluster.add_node(**ONE)


def at_work() -> int:
    """Training workers that are alive."""
    actors = ray._private.state.actors().values()
    return sum("RayTrainWorker" in one["ActorClassName"] and one["State"] == "ALIVE" for one in actors)


def test_workers_come_and_go_and_the_losses_are_those_of_one(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "RESIZE_SECONDS", 1.0)
    tiny_shards.write(tmp_path / "clips", 40)
    recipe = {"steps": 3000, "batch": 8, "optimizer": {"learning_rate": 1e-4}}
    values = tiny_shards.spec(tmp_path, recipe=recipe, checkpoints={"every_steps": 100})

    def trained(progress: Progress, **changes: Any) -> list[Row]:
        spec = load({**values, **changes})
        assert isinstance(spec, TrainSpec)
        return run_train(spec, progress)

    weather = Weather(cluster, tmp_path / "run")
    elastic = {"resources": {"workers": [1, 2]}, "failure": {"max_failures": 5}}
    rows = trained(weather, ray={"address": cluster.address}, **elastic)
    assert weather.seen == [1, 2, 1]
    alone = trained(Progress(Console(quiet=True)), output={"path": str(tmp_path / "alone")})
    assert [row["step"] for row in rows] == [row["step"] for row in alone]
    for ours, theirs in zip(rows, alone, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
