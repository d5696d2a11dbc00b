"""What starts a cluster, or a job on one of its own: cluster.yaml, RayJobs and Slurm scripts, all checked offline."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray._private.services import get_node_ip_address
from samples import embed_spec, tubelet

from pipeline.verify import verify

ROOT = Path(__file__).parent.parent

# What the script finds on PATH in place of Slurm: nodes are processes here.
FAKES = {
    "scontrol": 'printf "%s\\n" ${3//,/ }',
    "hostname": f"echo {get_node_ip_address()} ::1",
    "tubelet": f'exec "{sys.executable}" -m jobs "$@"',
    "srun": """
echo "$*" >> "$FAKE_LOG"
while [[ $1 == --* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; esac
    shift
done
tasks=${tasks:?}
for ((n = 0; n < tasks; n++)); do "$@" & pids+=($!); done
trap 'kill "${pids[@]}" 2> /dev/null' TERM
wait
wait
""",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which a job of Slurm's seems to run, on three nodes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in FAKES.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    mine = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n1,n2", "SLURM_JOB_NODELIST_HET_GROUP_0": "n1,n2"}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), "FAKE_LOG": str(tmp_path / "steps")}
    return {**os.environ, "PATH": path, **mine, **quiet}


@pytest.mark.slow
def test_the_slurm_script_does_the_job(corpus: Path, tmp_path: Path, slurm: dict[str, str], capfd, monkeypatch) -> None:
    spec = tmp_path / "spec.yaml"
    resources = {"decode": {"actors": 2}, "embed": {"actors": 1, "gpus": 0.0}}
    spec.write_text(yaml.safe_dump(embed_spec(corpus, tmp_path / "out", resources=resources)))
    assert tubelet(monkeypatch, "render", spec, "--slurm", "--node-cpus", 1) == 0
    script = tmp_path / "job.sh"
    script.write_text(capfd.readouterr().out)
    done = subprocess.run(["bash", str(script)], cwd=tmp_path, env=slurm, capture_output=True, text=True, timeout=400)
    print(done.stdout[-3000:], done.stderr[-3000:])
    assert done.returncode == 0
    assert verify(str(tmp_path / "out")).problems == []
    print((tmp_path / "steps").read_text())
