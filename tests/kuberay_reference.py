"""The fields of a RayJob and their types, as KubeRay 1.7 publishes them, and those of a pod that are used.

https://ray-project.github.io/kuberay/reference/api/ ; a set holds the values that a field may have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STRINGS = Mapping[str, str]


def of(kind: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), kind)


RESOURCES = of(STRINGS, "requests limits")
CONTAINER = {**of(str, "name image"), "resources": RESOURCES, "volumeMounts": [of(str, "name mountPath")]}
VOLUME = {"name": str, "configMap": of(str, "name"), "persistentVolumeClaim": of(str, "claimName")}
TOLERATION = {"key": str, "operator": {"Exists", "Equal"}, "effect": {"NoSchedule", "NoExecute"}}
POD = {
    "spec": {
        "restartPolicy": {"Never", "Always"},
        "containers": [CONTAINER],
        "volumes": [VOLUME],
        "tolerations": [TOLERATION],
    }
}
HEAD_GROUP = {
    **of(STRINGS, "labels rayStartParams resources"),
    **of(dict, "headService ingressOptions"),
    **of(bool, "enableIngress"),
    **of(str, "serviceType"),
    "template": POD,
}
WORKER_GROUP = {
    **of(STRINGS, "labels rayStartParams resources"),
    **of(int, "replicas minReplicas maxReplicas idleTimeoutSeconds priority numOfHosts"),
    **of(bool, "suspend"),
    **of(str, "groupName"),
    **of(dict, "scaleStrategy"),
    "template": POD,
}
AUTOSCALER = {
    **of([dict], "env envFrom volumeMounts"),
    **of([str], "command args"),
    **of(str, "image imagePullPolicy"),
    **of(int, "idleTimeoutSeconds"),
    **of(dict, "securityContext"),
    "resources": RESOURCES,
    "upscalingMode": {"Default", "Aggressive", "Conservative"},
    "version": {"v1", "v2"},
}
CLUSTER = {
    **of(dict, "upgradeStrategy gcsFaultToleranceOptions historyServerOptions networkPolicy tlsOptions"),
    **of(bool, "suspend enableInTreeAutoscaling"),
    **of(str, "managedBy rayVersion"),
    **of(STRINGS, "headServiceAnnotations"),
    "authOptions": {"mode": {"disabled", "token"}},
    "autoscalerOptions": AUTOSCALER,
    "headGroupSpec": HEAD_GROUP,
    "workerGroupSpecs": [WORKER_GROUP],
}
RAY_JOB = {
    **of(int, "activeDeadlineSeconds backoffLimit ttlSecondsAfterFinished preRunningDeadlineSeconds"),
    **of(str, "managedBy entrypoint runtimeEnvYAML jobId entrypointResources"),
    **of(float, "entrypointNumCpus entrypointNumGpus"),
    **of(bool, "shutdownAfterJobFinishes suspend"),
    **of(STRINGS, "metadata clusterSelector"),
    **of(dict, "submitterPodTemplate deletionStrategy"),
    "submitterConfig": of(int, "backoffLimit"),
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "rayClusterSpec": CLUSTER,
}


def strangers(value: Any, known: Any, name: str) -> list[str]:
    """The fields of a value that the reference does not know, or knows of another type."""
    if isinstance(known, dict):
        if not isinstance(value, dict):
            return [name]
        unknown = [f"{name}.{key}" for key in value if key not in known]
        inner = [strangers(value[key], known[key], f"{name}.{key}") for key in value if key in known]
        return unknown + [one for found in inner for one in found]
    if isinstance(known, list):
        if not isinstance(value, list):
            return [name]
        return [one for n, item in enumerate(value) for one in strangers(item, known[0], f"{name}[{n}]")]
    if isinstance(known, set):
        return [] if value in known else [name]
    if known is STRINGS:
        right = isinstance(value, dict) and all(isinstance(text, str) for text in [*value, *value.values()])
    else:
        right = type(value) is known
    return [] if right else [name]
