"""`tubelet render`: what it refuses, and jobs for Kubernetes, which are what that takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_reference import RAY_JOB, strangers
from launches import launched
from rendering import EVERY_JOB, Rendered, job

from jobs import embed, shard
from jobs.embed import Encoder
from jobs.nodes import Shape, placed
from jobs.room import Room
from jobs.spec import EmbedSpec, EvaluateSpec, JobSpec, ShardSpec, TrainSpec, load
from jobs.train import decoders
from pipeline.commits import Run
from pipeline.limits import Limits
from pipeline.pools import Pool
from pipeline.sampling import Sampling
from pipeline.stages import Cutting

HERE, SET = "runs/x", ("--slurm", "--set")


@pytest.fixture
def rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Rendered:
    return Rendered(tmp_path, monkeypatch, capfd)


def demands(spec: JobSpec) -> list[tuple[int, dict[str, float], Mapping[str, str]]]:
    """The workers that a job asks Ray for, on a cluster that has no node yet."""
    room = Room.of([], may_grow=True)
    if isinstance(spec, TrainSpec | EvaluateSpec):
        asked = spec.resources
        processes = (asked.most, {"CPU": asked.cpus, "GPU": asked.gpus or 0.0}, asked.labels)
        if isinstance(spec, EvaluateSpec) or not spec.decodes:
            return [processes]
        return [processes, (decoders(spec, room), {"CPU": 1.0, "GPU": 0.0}, spec.resources.decode.labels)]
    run, limits = Run("/x", "f"), Limits()
    cutting = Cutting("/", Sampling(), {}, (), 3, 16, limits, spec.resources.decode.hardware)
    pools: list[Pool] = (
        shard.pools(spec, run, cutting, "s", room)
        if isinstance(spec, ShardSpec)
        else embed.pools(spec, run, Encoder(spec.model, Sampling()), cutting, "s", room)
    )
    return [(pool.actors, {"CPU": pool.cpus, "GPU": pool.gpus}, pool.labels) for pool in pools]


@EVERY_JOB
def test_a_ray_job_has_the_published_fields_alone(
    rendered: Rendered, spec: dict[str, Any], nodes: dict[str, int]
) -> None:
    options = ("--namespace", "video", "--deadline-seconds", 3600)
    config_map, ray_job = rendered.kuberay(spec, *options)
    assert (ray_job["apiVersion"], ray_job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(ray_job) == {"apiVersion", "kind", "metadata", "spec"}
    assert strangers(ray_job["spec"], RAY_JOB, "spec") == []
    assert strangers({**ray_job["spec"], "entryPoint": "x"}, RAY_JOB, "spec") == ["spec.entryPoint"]
    assert ray_job["spec"]["activeDeadlineSeconds"] == 3600
    assert (config_map["apiVersion"], config_map["kind"]) == ("v1", "ConfigMap")
    assert set(config_map) == {"apiVersion", "kind", "metadata", "data"}
    for about in (config_map["metadata"], ray_job["metadata"]):
        assert set(about) == {"name", "namespace", "labels", "annotations"}
        assert about["namespace"] == "video"
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", about["name"])  # KubeRay's limit


@EVERY_JOB
def test_the_job_reads_its_spec_on_the_head(
    rendered: Rendered, spec: dict[str, Any], nodes: dict[str, int]
) -> None:
    config_map, ray_job = rendered.kuberay(spec)
    pod = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
    program, command, path = ray_job["spec"]["entrypoint"].split()
    assert (program, command) == ("tubelet", "run")
    folder, _, name = path.rpartition("/")
    assert mounts[folder]["configMap"]["name"] == config_map["metadata"]["name"]
    assert mounts["/data"]["persistentVolumeClaim"]["claimName"] == "disk"
    assert load(yaml.safe_load(config_map["data"][name])) == placed(load(spec), Shape(16, 1))
    assert load(spec).identity() == load(yaml.safe_load(config_map["data"][name])).identity()


@EVERY_JOB
def test_its_nodes_are_those_that_its_workers_ask_for(
    rendered: Rendered, spec: dict[str, Any], nodes: dict[str, int]
) -> None:
    """By Ray's own reading of a RayCluster, and its own scheduler."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config_map, ray_job = rendered.kuberay(spec)
    about = {"name": "x", "namespace": "video"}
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": about, "spec": ray_job["spec"]["rayClusterSpec"]}
    )
    types = config["available_node_types"]
    head = types[config["head_node_type"]]["resources"]
    assert (head["CPU"], head.get("GPU", 0)) == (0, 0)
    delivered = load(yaml.safe_load(config_map["data"]["spec.yaml"]))
    assert launched(config, *demands(delivered)) == nodes
    for name, count in nodes.items():
        kind = types[name]
        assert (kind["min_workers"], kind["max_workers"]) == (0, count)
        assert kind["labels"] == (
            {"role": name} if not asked_labels(spec, name) else asked_labels(spec, name)
        )
    if isinstance(delivered, EmbedSpec) and (delivered.resources.embed.gpus or 0):
        assert [name for name in nodes if types[name]["resources"].get("GPU")] == ["embed"]


def asked_labels(spec: dict[str, Any], group: str) -> dict[str, str]:
    resources = spec["resources"]
    labels: dict[str, str] = resources.get(group, resources).get("labels", {})
    return labels


IMAGE = ("--kuberay", "--image", "hub/tubelet:1")
READY = job("embed", decode={"actors": 2}, embed={"actors": 1})
PROBE = {"version": 1, "kind": "probe", "embeddings": "/data/e", "output": {"path": "/data/p"}}


@pytest.mark.parametrize(
    ("spec", "options", "line"),
    [
        (READY, (), "--kuberay, --slurm = False: choose one of them"),
        (READY, ("--kuberay", "--slurm"), "choose one of them"),
        (PROBE, ("--slurm",), "kind = 'probe': one process does it, without a cluster"),
        (READY, ("--kuberay",), "--image = None: missing"),
        (READY, ("--slurm", "--image", "x"), "--image = 'x': goes with --kuberay alone"),
        (READY, (*IMAGE, "--nodes", 2), "--nodes = 2: goes with --slurm alone"),
        (READY, (*IMAGE, "--mount", "disk"), "--mount = 'disk': write it as CLAIM:/PATH"),
        (READY, IMAGE, "output.path = '/data/out': a pod has a disk of its own"),
        (READY, (*IMAGE, "--mount", "disk:/dat"), "output.path = '/data/out': a pod has a disk of its own"),
        (READY, ("--slurm", "--output", HERE), "output.path = 'runs/x': a relative path means nothing"),
        (READY, (*IMAGE, "--output", HERE), "output.path = 'runs/x': a relative path means nothing"),
        (READY, (*SET, "input.root=videos"), "input.root = 'videos': a relative path"),
        (READY, (*SET, "model.checkpoint=runs/m"), "model.checkpoint = 'runs/m': a relative path"),
        (READY, (*SET, "ray.address=head:6379"), "ray.address = 'head:6379': a rendered job runs"),
        (READY, (*SET, "resources.decode.cpus=32"), "resources.decode.cpus = 32.0: a worker"),
        (READY, (*SET, "resources.embed.gpus=8"), "--node-gpus"),
        (job("embed", decode={"actors": 2}), ("--slurm",), "resources.embed.actors = None: nodes are made"),
        (
            job("embed", decode={"labels": {"role": "a"}}, embed={"labels": {"role": "b"}}),
            ("--slurm", "--nodes", 2),
            "--nodes = 2: no node is both role=a and role=b",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_rendered_is_one_line(
    rendered: Rendered, spec: dict[str, Any], options: tuple[object, ...], line: str
) -> None:
    code, out, err = rendered(spec, *options)
    assert (code, out) == (2, "")
    assert line in err
    assert len(err.splitlines()) == 1
