"""Jobs for Kubernetes and for Slurm: what is rendered is what these take, and does what the spec says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from kuberay_reference import RAY_JOB, strangers
from launches import launched
from ray._private.services import get_node_ip_address
from samples import embed_spec, tubelet

from jobs import embed, shard
from jobs.embed import Encoder
from jobs.nodes import Shape, placed
from jobs.room import Room
from jobs.spec import EmbedSpec, EvaluateSpec, JobSpec, ShardSpec, TrainSpec, dump, load
from pipeline.commits import Run
from pipeline.limits import Limits
from pipeline.pools import Pool
from pipeline.sampling import Sampling
from pipeline.stages import Cutting
from pipeline.verify import verify

ROOT = Path(__file__).parent.parent
HERE, SET = "runs/x", ("--slurm", "--set")


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


@pytest.fixture
def rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Rendered:
    return Rendered(tmp_path, monkeypatch, capfd)


def demands(spec: JobSpec) -> list[tuple[int, dict[str, float], Mapping[str, str]]]:
    """The workers that a job asks Ray for, on a cluster that has no node yet."""
    room = Room.of([], may_grow=True)
    if isinstance(spec, TrainSpec | EvaluateSpec):
        asked = spec.resources
        return [(asked.most, {"CPU": asked.cpus, "GPU": asked.gpus or 0.0}, asked.labels)]
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


SBATCH = {
    "job-name": r"tubelet-\w+", "requeue": None, "open-mode": "append", "signal": r"B:TERM@\d+",
    "nodes": r"\d+", "ntasks-per-node": "1", "cpus-per-task": r"\d+", "gpus-per-node": r"\d+",
    "mem": r"\d+G", "time": r"\d+:\d\d:\d\d",
}  # fmt: skip


def parts(script: str) -> list[dict[str, str]]:
    """The options of each part of a heterogeneous job, each one that sbatch has."""
    found: list[dict[str, str]] = [{}]
    for text in re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE):
        if text == "hetjob":
            found.append({})
            continue
        name, _, value = text.removeprefix("--").partition("=")
        pattern = SBATCH[name]
        assert value == "" if pattern is None else re.fullmatch(pattern, value), text
        found[-1][name] = value
    return found


@EVERY_JOB
def test_the_slurm_script_asks_for_the_nodes_of_each_stage(
    rendered: Rendered, spec: dict[str, Any], nodes: dict[str, int], tmp_path: Path
) -> None:
    script = rendered.slurm(spec, "--deadline-seconds", 90061)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    found = parts(script)
    assert [int(part["nodes"]) for part in found] == list(nodes.values())
    assert {part["time"] for part in found} == {"25:01:01"}
    assert "ray stop" not in script
    assert "pkill" not in script


def test_like_nodes_for_all_workers(rendered: Rendered) -> None:
    """No worker has to be counted: the job takes what room there is."""
    script = rendered.slurm(job("embed"), "--nodes", 3, "--node-cpus", 48, "--node-gpus", 8)
    (part,) = parts(script)
    assert (part["nodes"], part["cpus-per-task"], part["gpus-per-node"]) == ("3", "48", "8")
    assert "--het-group" not in script
    assert "--labels" not in script
    assert dump(load(job("embed"))) in script


# What the script finds on PATH in place of Slurm: nodes are processes here. Each has a folder of its own, as it
# would on a machine: two that start at once in one take each other's sockets.
SLURM = {
    "scontrol": 'printf "%s\\n" ${3//,/ }',
    "hostname": f"echo {get_node_ip_address()} ::1",
    "tubelet": f'exec "{sys.executable}" -m jobs "$@"',
    "srun": """
echo "$*" >> "$FAKE_LOG"
while [[ $1 == --* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; esac
    shift
done
for ((n = 0; n < ${tasks:?}; n++)); do "${@/%\\/ray//ray$$-$n}" & pids+=($!); done
trap 'kill "${pids[@]}" 2> /dev/null' TERM
wait
wait
""",
}
# And in place of Ray: a head listens, a node sleeps, all say that they have joined.
NO_RAY = {
    "ray": f"""
for option; do case $option in --port=*) port=${{option#*=}} ;; esac; done
[[ $* == *--head* ]] || exec sleep 60
exec "{sys.executable}" -c "import socket, time; s = socket.create_server(('', $port)); time.sleep(60)"
""",
    "python": "cat > /dev/null",
    "tubelet": """
cp "$2" "$FAKE_LOG.spec"
echo "$1 $RAY_ADDRESS $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" > "$FAKE_LOG.job"
trap 'sleep 0.5; echo "put down" >> "$FAKE_LOG.job"; exit 143' TERM
[[ -e $FAKE_LOG.long ]] && { sleep 30 & wait; }
exit 3
""",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which a job of Slurm's seems to run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    install(folder, SLURM)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    number = str(100_000 + os.getpid())
    mine = {"SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "n1,n2", "SLURM_JOB_NODELIST_HET_GROUP_0": "n1,n2"}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), "FAKE_LOG": str(tmp_path / "steps")}
    return {**os.environ, "PATH": path, **mine, **quiet}


def install(folder: Path, programs: dict[str, str]) -> None:
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)


def left(environment: dict[str, str]) -> list[psutil.Process]:
    """The processes of a job."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FAKE_LOG") == environment["FAKE_LOG"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def carry_out(script: str, environment: dict[str, str], folder: Path, seconds: float) -> tuple[int, str]:
    """Run a script as sbatch would; its exit code, and what it said."""
    (folder / "job.sh").write_text(script)
    with (folder / "said").open("w") as said:
        batch = subprocess.Popen(
            ["bash", str(folder / "job.sh")], cwd=folder, env=environment, stdout=said, stderr=said
        )
        try:
            if (folder / "steps.long").exists():
                deadline = time.monotonic() + seconds
                while not (folder / "steps.job").exists():
                    assert time.monotonic() < deadline, (folder / "said").read_text()
                    time.sleep(0.1)
                batch.send_signal(signal.SIGTERM)  # as Slurm does when the time is almost up
            code = batch.wait(seconds)
        finally:
            for process in left(environment):
                process.kill()
    return code, (folder / "said").read_text()


@pytest.mark.parametrize("long", [False, True])
def test_the_slurm_script_starts_ray_runs_the_job_and_ends_what_it_started(
    rendered: Rendered, slurm: dict[str, str], tmp_path: Path, long: bool
) -> None:
    install(tmp_path / "bin", NO_RAY)
    if long:
        (tmp_path / "steps.long").touch()
    spec = job("embed", decode={"actors": 32}, embed={"actors": 3})
    code, said = carry_out(rendered.slurm(spec), slurm, tmp_path, 60)
    assert code == (143 if long else 3), said
    assert left(slurm) == []
    assert not Path(f"/tmp/tubelet-job-{slurm['SLURM_JOB_ID']}").exists()
    first, *ended = (tmp_path / "steps.job").read_text().splitlines()
    assert ended == (["put down"] if long else [])
    port = 20000 + int(slurm["SLURM_JOB_ID"]) % 10000
    assert first == f"run {get_node_ip_address()}:{port} token 64"
    assert load(yaml.safe_load((tmp_path / "steps.spec").read_text())) == placed(load(spec), Shape(16, 1))
    head, *others = (tmp_path / "steps").read_text().splitlines()
    started = {"decode": "--num-gpus=0 --labels=role=decode", "embed": "--num-gpus=1 --labels=role=embed"}
    assert head.startswith(
        "--het-group=0 --nodes=1 --ntasks=1 --nodelist=n1 --cpus-per-task=16 ray start --head "
    )
    assert f"--port={port} --include-dashboard=false --num-cpus=17 {started['decode']}" in head
    nodes, cleaned = others[:2], others[2:]
    assert any(
        step.startswith(
            "--het-group=0 --nodes=1 --ntasks=1 --exclude=n1 --cpus-per-task=16 ray start --address="
        )
        and f"--num-cpus=16 {started['decode']}" in step
        for step in nodes
    )
    assert any(
        step.startswith("--het-group=1 --nodes=3 --ntasks=3 --cpus-per-task=4 --gpus-per-node=1 ray start ")
        and f"--num-cpus=4 {started['embed']}" in step
        for step in nodes
    )
    assert [step.partition(" --cpus")[0] for step in cleaned] == [
        "--het-group=0 --nodes=2 --ntasks=2", "--het-group=1 --nodes=3 --ntasks=3",
    ]  # fmt: skip


def test_a_head_that_does_not_start_ends_the_slurm_job(
    rendered: Rendered, slurm: dict[str, str], tmp_path: Path
) -> None:
    install(tmp_path / "bin", {**NO_RAY, "ray": "exit 1"})
    code, said = carry_out(rendered.slurm(job("embed"), "--nodes", 1), slurm, tmp_path, 60)
    assert code == 1
    assert said == "Ray's head did not start\n"
    assert not (tmp_path / "steps.job").exists()


@pytest.mark.slow
def test_the_slurm_script_does_the_job(
    rendered: Rendered, slurm: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    """With a real Ray: a head, a second decode node and an embed node."""
    resources = {"decode": {"actors": 2}, "embed": {"actors": 1, "gpus": 0.0}}
    spec = embed_spec(corpus, tmp_path / "out", resources=resources)
    code, said = carry_out(rendered.slurm(spec, "--node-cpus", 1), slurm, tmp_path, 500)
    assert code == 0, said
    assert verify(str(tmp_path / "out")).problems == []
    assert left(slurm) == []
