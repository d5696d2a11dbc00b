"""Specs to render, and the command that does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from samples import embed_spec, tubelet


def job(kind: str, **resources: Any) -> dict[str, Any]:
    """A spec of a kind, its paths in buckets or below /data."""
    if kind in ("embed", "shard"):
        spec = embed_spec(Path("/data/videos"), Path("/data/out"), kind=kind, resources=resources)
        if kind == "shard":
            spec["models"] = [{"name": spec.pop("model")["name"]}]
        return spec
    data = {"clips": {"shards": "/data/shards"}}
    spec = {"version": 1, "kind": kind, "data": data, "output": {"path": "/data/out"}, "resources": resources}
    if kind == "evaluate":
        return {**spec, "model": {"name": "tubevit-tiny", "checkpoint": "/data/model"}}
    recipe = {"steps": 10, "batch": 120, "optimizer": {"learning_rate": 0.1}}
    return {**spec, "model": {"name": "tubevit-tiny"}, "recipe": recipe}


STORED = {"input": {"shards": "/data/shards"}, "sampling": None}
LIVE = {"data": {"clips": {"videos": "/data/videos.csv"}}}
JOBS = [
    (job("embed", decode={"actors": 60}, embed={"actors": 4}), {"decode": 4, "embed": 4}),
    (
        job("embed", decode={"actors": 60, "cpus": 2}, embed={"actors": 5, "gpus": 0.5}),
        {"decode": 8, "embed": 3},
    ),
    (job("embed", decode={"actors": 7}, embed={"actors": 2, "gpus": 0}), {"decode": 1, "embed": 2}),
    (
        job("embed", decode={"actors": 7}, embed={"actors": 2, "cpus": 8, "gpus": 0}),
        {"decode": 1, "embed": 1},
    ),
    ({**job("embed", embed={"actors": 3}), **STORED}, {"embed": 3}),
    (job("shard", decode={"actors": 100, "labels": {"zone": "a", "role": "cutter"}}), {"decode": 7}),
    (job("shard", decode={"actors": 20, "hardware": "cuda"}), {"decode": 2}),
    (job("train", workers=8, cpus=4), {"train": 8}),
    (job("train", workers=(2, 6), gpus=0, cpus=4), {"train": 2}),
    ({**job("train", workers=8, cpus=4, decode={"actors": 40}), **LIVE}, {"train": 8, "decode": 3}),
    (job("evaluate", workers=2, labels={"role": "gpu"}), {"evaluate": 2}),
]
EVERY_JOB = pytest.mark.parametrize(
    ("spec", "nodes"), JOBS, ids=[f"{n}-{spec['kind']}" for n, (spec, _) in enumerate(JOBS)]
)


class Rendered:
    """The command line, in a folder with one spec."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
        self._file, self._patch, self._said = folder / "spec.yaml", monkeypatch, capfd

    def __call__(self, spec: dict[str, Any], *options: object) -> tuple[int, str, str]:
        """The exit code, and what is said and what is complained of."""
        self._file.write_text(yaml.safe_dump(spec))
        code = tubelet(self._patch, "render", self._file, *options)
        return (code, *self._said.readouterr())

    def kuberay(self, spec: dict[str, Any], *options: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """A ConfigMap and a RayJob."""
        code, out, err = self(
            spec, "--kuberay", "--image", "hub/tubelet:1", "--mount", "disk:/data", *options
        )
        assert (code, err) == (0, "")
        config_map, ray_job = yaml.safe_load_all(out)
        return config_map, ray_job

    def slurm(self, spec: dict[str, Any], *options: object) -> str:
        code, out, err = self(spec, "--slurm", *options)
        assert (code, err) == (0, "")
        return out
