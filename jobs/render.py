"""`tubelet render`: a job as what Kubernetes or Slurm takes, on standard output."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.options import Output, Overrides, SpecPath, load_spec
from pipeline.errors import SpecError

Mounts = Annotated[
    list[str] | None,
    typer.Option("--mount", metavar="CLAIM:/PATH", help="A volume claim for all pods; repeatable."),
]


def render(
    spec: SpecPath,
    kuberay: Annotated[bool, typer.Option("--kuberay", help="A RayJob, for kubectl apply -f -.")] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="A script, for sbatch.")] = False,
    set_: Overrides = None,
    output: Output = None,
    image: Annotated[str | None, typer.Option(help="--kuberay: what pods run; tubelet is in it.")] = None,
    namespace: Annotated[str | None, typer.Option(help="--kuberay: where it runs.")] = None,
    mount: Mounts = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="--slurm: so many, all alike, instead of those for each stage.")
    ] = None,
    node_cpus: Annotated[int, typer.Option(min=1, help="The most cores of a node.")] = 16,
    node_gpus: Annotated[int, typer.Option(min=0, help="The most GPUs of a node.")] = 1,
    deadline_seconds: Annotated[int | None, typer.Option(min=1, help="The longest it may take.")] = None,
) -> None:
    """Print a job as a RayJob of KubeRay, or as a Slurm script. Paths must mean the same on its nodes."""
    from jobs.kuberay import manifests
    from jobs.nodes import Shape
    from jobs.questions import ProbeSpec
    from jobs.slurm import script

    if kuberay == slurm:
        raise SpecError("--kuberay, --slurm", kuberay, "choose one of them")
    checked, shape = load_spec(spec, set_, output), Shape(node_cpus, node_gpus)
    if isinstance(checked, ProbeSpec):
        raise SpecError("kind", checked.kind, "one process does it, without a cluster: tubelet run")
    if slurm:
        _refuse("--kuberay", image=image, namespace=namespace, mount=mount)
        print(script(checked, shape, nodes, deadline_seconds), end="")
        return
    _refuse("--slurm", nodes=nodes)
    if image is None:
        raise SpecError("--image", None, "missing; name one that has tubelet in it (README: On a cluster)")
    print(manifests(checked, shape, image, namespace, _mounts(mount or []), deadline_seconds), end="")


def _refuse(other: str, **given: object) -> None:
    for name, value in given.items():
        if value:
            raise SpecError(f"--{name}", value, f"goes with {other} alone")


def _mounts(given: list[str]) -> dict[str, str]:
    """Volume claims by where they are mounted."""
    found = {}
    for text in given:
        claim, colon, path = text.partition(":")
        if not colon or not claim or not path.startswith("/"):
            raise SpecError("--mount", text, "write it as CLAIM:/PATH")
        found[path] = claim
    return found
