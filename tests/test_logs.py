"""Metrics also go to Weights & Biases and to MLflow, and a run goes on there when it does here."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny_shards
from training import refused

from jobs.logs import Logs, Mlflow, Wandb, sinks
from jobs.metrics import Metrics, read
from jobs.spec import TrainSpec, load

BOTH = Logs(wandb=Wandb(project="clips"), mlflow=Mlflow(uri="sqlite:////nowhere.db", experiment="clips"))
SPEC = {"recipe": {"batch": 8, "optimizer": {"learning_rate": 0.1}}, "data": {}}


class Server:
    """Takes the place of both packages; said: what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[Any] = []
        wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
        wandb.__file__ = mlflow.__file__ = __file__
        run = SimpleNamespace(log=self.note("log"), finish=self.note("finish"))
        wandb.__dict__.update(init=lambda **options: self.said.append(("init", options)) or run)
        begun = SimpleNamespace(info=SimpleNamespace(run_id="17"))
        names = ("set_tracking_uri", "set_experiment", "log_params", "log_metrics", "end_run")
        mlflow.__dict__.update({name: self.note(name) for name in names})
        mlflow.__dict__.update(start_run=lambda **options: self.said.append(("start_run", options)) or begun)
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        monkeypatch.setitem(sys.modules, "mlflow", mlflow)

    def note(self, name: str) -> Any:
        return lambda *values, **options: self.said.append((name, *values, *options.values()))

    def of(self, name: str) -> list[Any]:
        return [said[1:] for said in self.said if said[0] == name]


def test_both_get_every_row_and_go_on_with_their_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    log = Metrics(tmp_path, sinks(BOTH, tmp_path, SPEC))
    log({"step": 20, "loss": 0.5, "accuracy/out (test)": 1.0})
    log.close()
    values = {"loss": 0.5, "accuracy/out (test)": 1.0}
    assert server.of("log") == [(values, 20)]
    assert server.of("log_metrics") == [({"loss": 0.5, "accuracy/out test": 1.0}, 20)]
    assert server.of("log_params") == [({"recipe.batch": 8, "recipe.optimizer.learning_rate": 0.1},)]
    assert server.of("start_run") == [({"run_name": tmp_path.name},)]
    ((first,),) = server.of("init")
    assert (first["project"], first["name"], first["config"]) == ("clips", tmp_path.name, SPEC)
    assert server.of("finish") == server.of("end_run") == [()]

    server.said.clear()
    log = Metrics(tmp_path, sinks(BOTH, tmp_path, SPEC))
    log({"step": 20, "resumed": 20})  # is not a measure
    log({"step": 40, "loss": 0.25})
    log.close()
    ((again,),) = server.of("init")
    assert (again["id"], again["resume"]) == (first["id"], "allow")
    assert server.of("start_run") == [({"run_id": "17"},)]
    assert server.of("log_params") == []
    assert server.of("log_metrics") == server.of("log") == [({"loss": 0.25}, 40)]


def test_a_server_that_fails_costs_no_row(tmp_path: Path) -> None:
    class Broken:
        calls = 0

        def __call__(self, values: Mapping[str, float], step: int) -> None:
            self.calls += 1
            raise ConnectionError("gone")

        def close(self) -> None:
            raise AssertionError("it is given nothing more")

    broken = Broken()
    log = Metrics(tmp_path, [broken])
    for step in (20, 40):
        log({"step": step, "loss": 0.5})
    log.close()
    assert broken.calls == 1
    assert [row["step"] for row in read(tmp_path)] == [20, 40]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_before_anything_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_shards.write(tmp_path / "clips", 24)
    wanted = json.loads(BOTH.model_dump_json())
    values = tiny_shards.spec(tmp_path, logs={name: wanted[name]})
    monkeypatch.setitem(sys.modules, name, None)
    line = f"logs.{name}: the package {name} is not installed: pip install 'tubelet[{name}]', or leave it out"
    assert refused(values) == line
    monkeypatch.setitem(sys.modules, name, ModuleType(name))  # a folder of that name
    assert refused(values) == line


def test_where_metrics_go_makes_no_other_job(tmp_path: Path) -> None:
    plain, logged = (
        load(tiny_shards.spec(tmp_path, **changed)) for changed in ({}, {"logs": BOTH.model_dump()})
    )
    assert isinstance(plain, TrainSpec)
    assert isinstance(logged, TrainSpec)
    assert plain.identity() == logged.identity()
