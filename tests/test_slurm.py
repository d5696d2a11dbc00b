"""Jobs for Slurm: what is rendered is what sbatch takes, and does what the spec says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from string import Template
from typing import Any

import psutil
import pytest
import yaml
from ray._private.services import get_node_ip_address
from rendering import EVERY_JOB, Rendered, job
from samples import embed_spec

from jobs.nodes import Shape, placed
from jobs.slurm import FOLDER
from jobs.spec import dump, load
from pipeline.verify import verify

ROOT = Path(__file__).parent.parent


@pytest.fixture
def rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Rendered:
    return Rendered(tmp_path, monkeypatch, capfd)


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


# What the script finds on PATH in place of Slurm: nodes are processes here, each with a folder of its own, as
# on a machine of its own: two that start at once in one take each other's sockets.
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
    folder = Template(FOLDER).substitute(slurm)
    assert f"folder={FOLDER}\n" in rendered.slurm(spec)
    assert not Path(folder).exists()
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
