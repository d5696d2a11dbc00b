"""`tubelet render --slurm`: a spec as a script for sbatch, which runs a Ray of its own on its nodes.

The pattern is that of Ray's documentation (docs.ray.io, "Deploying on Slurm"): a step for the head, one for
the other nodes, and then the job. Two kinds of nodes are the parts of a heterogeneous job.
"""

from __future__ import annotations

import shlex

from jobs.nodes import Group, Shape, alike, groups, placed, portable
from jobs.room import written
from jobs.spec import ClusterSpec, dump

WARNING_SECONDS = 120  # before the time is up: the job puts down what it holds
WAIT_SECONDS = 600  # for all nodes to join
# On each node; short, because a socket's path is, and Ray's lie in it.
FOLDER = "/tmp/tubelet-job-$SLURM_JOB_ID"

HEADER = """\
#!/bin/bash
# A tubelet job for Slurm: sbatch FILE. What your site asks for besides (partition, account) goes to each part
# of the #SBATCH lines; tubelet, ray and python are those on PATH, on a disk that all nodes see. The same job
# again, or requeued, goes on where it stopped.
#SBATCH --job-name={name}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@{warning}
{parts}
set -euo pipefail
umask 077

# Of this job alone, whoever else is on these nodes: Ray's port, its folder, and the token that it asks for.
nodes=$(scontrol show hostnames "${{SLURM_JOB_NODELIST_HET_GROUP_0:-$SLURM_JOB_NODELIST}}")
head=${{nodes%%$'\\n'*}}
addresses=$(hostname --ip-address)
ip=${{addresses%% *}}
port=$((20000 + SLURM_JOB_ID % 10000))
folder={folder}
export RAY_ADDRESS=$ip:$port RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
alike=(--block --disable-usage-stats --temp-dir="$folder/ray"
    --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0)

steps=()
end() {{
    kill "${{steps[@]}}" 2> /dev/null || true
    wait
{clean}
}}
trap end EXIT
rm -rf "$folder"
mkdir "$folder"
cat > "$folder/spec.yaml" <<'END OF SPEC'
{spec}END OF SPEC

# The head has a core more than there is, for Ray's own small tasks, beside workers that hold every core.
{head} \\
    ray start --head --node-ip-address="$ip" --port="$port" --include-dashboard=false \\
    {head_has} "${{alike[@]}}" < /dev/null &
steps+=($!)
until (exec 3<> "/dev/tcp/$ip/$port") 2> /dev/null; do
    kill -0 "${{steps[0]}}" 2> /dev/null || {{ echo "Ray's head did not start" >&2; exit 1; }}
    sleep 1
done
{others}
python - {count} {wait} "${{steps[@]}}" <<'END OF PYTHON'
import os, sys, time, ray

wanted, seconds, *steps = map(int, sys.argv[1:])
ray.init(log_to_driver=False)
deadline = time.monotonic() + seconds
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline or not all(os.path.exists(f"/proc/{{step}}") for step in steps):
        sys.exit(f"only {{there}} of {{wanted}} nodes have joined")
    time.sleep(1)
END OF PYTHON

tubelet run "$folder/spec.yaml" &
job=$!
trap 'kill -TERM "$job" 2> /dev/null || true' TERM INT
status=0
wait "$job" || status=$?
while kill -0 "$job" 2> /dev/null; do # a signal ends `wait`, but the job only when it is done with its work
    status=0
    wait "$job" || status=$?
done
exit "$status"
"""

STEP = """\
{srun} \\
    ray start --address="$RAY_ADDRESS" {has} "${{alike[@]}}" < /dev/null &
steps+=($!)
"""


def script(
    spec: ClusterSpec, shape: Shape, nodes: int | None = None, deadline_seconds: int | None = None
) -> str:
    """What `sbatch` takes.

    Args:
        shape: the most that a node has.
        nodes: so many of `shape`, all alike, which the workers share; None is nodes for each kind of worker.

    Raises:
        SpecError: see jobs.nodes; or a path that is relative.
    """
    portable(spec)
    spec = placed(spec, shape) if nodes is None else spec
    found = groups(spec, shape) if nodes is None else [alike(spec, nodes, shape)]
    several, first = len(found) > 1, found[0]
    head = _srun(first, 0, several, 1, ' --nodelist="$head"')
    others, clean = [], []
    for number, group in enumerate(found):
        count = group.nodes - (number == 0)
        if count:
            besides = ' --exclude="$head"' if number == 0 else ""
            srun = _srun(group, number, several, count, besides)
            others.append(STEP.format(srun=srun, has=_has(group, group.cpus)))
        clean.append(f'    {_srun(group, number, several, group.nodes)} rm -rf "$folder" || true')
    return HEADER.format(
        name=f"tubelet-{spec.kind}",
        warning=WARNING_SECONDS,
        folder=FOLDER,
        parts="#SBATCH hetjob\n".join(_part(group, deadline_seconds) for group in found),
        spec=dump(spec),
        head=head,
        head_has=_has(first, first.cpus + 1),
        others="".join(others),
        count=sum(group.nodes for group in found),
        wait=WAIT_SECONDS,
        clean="\n".join(clean),
    )


def _part(group: Group, deadline_seconds: int | None) -> str:
    """What a kind of nodes is asked for by."""
    asked = {"nodes": group.nodes, "ntasks-per-node": 1, "cpus-per-task": group.cpus}
    if group.gpus:
        asked["gpus-per-node"] = group.gpus
    lines = [f"#SBATCH --{name}={value}\n" for name, value in asked.items()]
    lines.append(f"#SBATCH --mem={group.memory_gib}G\n")
    if deadline_seconds is not None:
        hours, rest = divmod(deadline_seconds, 3600)
        lines.append(f"#SBATCH --time={hours}:{rest // 60:02}:{rest % 60:02}\n")
    return "".join(lines)


def _srun(group: Group, number: int, several: bool, nodes: int, besides: str = "") -> str:
    """A step of one task on each of so many nodes, with all that its part has on a node."""
    part = f" --het-group={number}" if several else ""
    gpus = f" --gpus-per-node={group.gpus}" if group.gpus else ""
    return f"srun{part} --nodes={nodes} --ntasks={nodes}{besides} --cpus-per-task={group.cpus}{gpus}"


def _has(group: Group, cpus: int) -> str:
    """What a node tells Ray of itself."""
    labels = f" {shlex.quote(f'--labels={written(group.labels)}')}" if group.labels else ""
    return f"--num-cpus={cpus} --num-gpus={group.gpus}{labels}"
