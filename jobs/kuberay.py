"""`tubelet render --kuberay`: a spec as a RayJob of KubeRay (ray.io/v1), and the ConfigMap that holds it.

Fields: https://ray-project.github.io/kuberay/reference/api/ (KubeRay 1.7).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import yaml

from jobs.nodes import Group, Shape, groups, placed, portable
from jobs.spec import ClusterSpec, dump
from pipeline.errors import SpecError

FOLDER = "/etc/tubelet"  # where the head finds the spec
HEAD = Group("head", 1, 2, 0, {})
HEAD_GIB = 8
IDLE_SECONDS = 300
RETRIES = 2  # each with a cluster of its own; a job goes on where the one before it stopped


def manifests(
    spec: ClusterSpec,
    shape: Shape,
    image: str,
    namespace: str | None = None,
    mounts: Mapping[str, str] | None = None,
    deadline_seconds: int | None = None,
) -> str:
    """What `kubectl apply -f -` takes: nodes come when workers ask for them, and all go when the job is over.

    Args:
        shape: the most that a pod has.
        image: has tubelet and Ray in it, and is what every pod runs.
        mounts: persistent volume claims by the path where every pod has them.

    Raises:
        SpecError: see jobs.nodes.groups; or a path that is neither a URI nor on a mount.
    """
    mounts = mounts or {}
    for field, path in portable(spec):
        if "://" not in path and not any(f"{path}/".startswith(f"{mount.rstrip('/')}/") for mount in mounts):
            problem = "a pod has a disk of its own; give a URI, or mount what holds it (--mount CLAIM:/PATH)"
            raise SpecError(field, path, problem)
    spec = placed(spec, shape)
    workers = groups(spec, shape)
    text = dump(spec)
    name = f"tubelet-{spec.kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    about: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/name": "tubelet"}}
    if namespace is not None:
        about["namespace"] = namespace
    head = _pod(HEAD, image, mounts)
    head["spec"]["volumes"].append({"name": "spec", "configMap": {"name": name}})
    head["spec"]["containers"][0]["volumeMounts"].append({"name": "spec", "mountPath": FOLDER})
    cluster = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": IDLE_SECONDS},
        # No work on the head: it schedules, and the job's driver runs there, which sees no pixels.
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0", "num-gpus": "0"}, "template": head},
        "workerGroupSpecs": [_group(group, image, mounts) for group in workers],
    }
    job = {
        "entrypoint": f"tubelet run {FOLDER}/spec.yaml",
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 60,
        "backoffLimit": RETRIES,
        **({} if deadline_seconds is None else {"activeDeadlineSeconds": deadline_seconds}),
        "rayClusterSpec": cluster,
    }
    about["annotations"] = {"tubelet/output": spec.output.path}
    return _written(
        [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"spec.yaml": text}},
            {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": about, "spec": job},
        ]
    )


def _group(group: Group, image: str, mounts: Mapping[str, str]) -> dict[str, Any]:
    return {
        "groupName": group.name,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": group.nodes,
        "labels": dict(group.labels),
        "rayStartParams": {},
        "template": _pod(group, image, mounts),
    }


def _pod(group: Group, image: str, mounts: Mapping[str, str]) -> dict[str, Any]:
    """A pod that is a node of Ray's: as much is set aside for it as it may have."""
    memory_gib = HEAD_GIB if group is HEAD else group.memory_gib
    amounts = {"cpu": str(group.cpus), "memory": f"{memory_gib}Gi"}
    if group.gpus:
        amounts["nvidia.com/gpu"] = str(group.gpus)
    claims = list(enumerate(mounts.items()))
    container = {
        "name": f"ray-{group.name}",
        "image": image,
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [{"name": f"claim-{n}", "mountPath": path} for n, (path, _) in claims],
    }
    volumes = [
        {"name": f"claim-{n}", "persistentVolumeClaim": {"claimName": claim}} for n, (_, claim) in claims
    ]
    pod: dict[str, Any] = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    if group.gpus:  # nodes with GPUs are commonly kept for those who say this
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"spec": pod}


class _Dumper(yaml.SafeDumper):
    """Text of several lines as such, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent)


def _written(documents: Sequence[dict[str, Any]]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=1000)
