"""`tubelet plan`: what a run would do, from its spec and a look at its input."""

from __future__ import annotations

from typing import Any

from jobs.questions import ProbeSpec
from jobs.spec import EvaluateSpec, TrainSpec


def estimate(spec: TrainSpec | EvaluateSpec | ProbeSpec) -> dict[str, Any]:
    """{what: how much}, in the order to print it; nothing is computed. Raises SpecError as a run would.

    Of a job that decodes or embeds see jobs.outlook.
    """
    if isinstance(spec, TrainSpec):
        return _training(spec)
    if isinstance(spec, ProbeSpec):
        return _probing(spec)
    return _testing(spec)


def _testing(spec: EvaluateSpec) -> dict[str, Any]:
    from jobs.testing import opened

    found = {f"{name} videos": len(source.dataset.videos()) for name, source in opened(spec)[1].items()}
    return {"job": spec.kind, **found, "output": spec.output.path}


def _probing(spec: ProbeSpec) -> dict[str, Any]:
    from jobs.probe import opened

    exam = opened(spec)
    found: dict[str, Any] = {"job": spec.kind, "model": exam.embedded.made.model.name}
    found |= {"videos": len(exam.embedded), "classes": len(exam.classes)}
    if spec.leave_out is not None:
        found["groups, each left out in turn"] = len(exam.folds)
    else:
        found["videos learned from"] = len(exam.folds[0].train)
        found["videos asked about"] = len(exam.folds[0].test)
    found["bytes of embeddings in memory"] = 4 * len(exam.embedded) * exam.embedded.dim
    found["output"] = spec.output.path
    return found


def _training(spec: TrainSpec) -> dict[str, Any]:
    from jobs.materials import check, materials

    data = materials(spec)
    check(spec, data)
    found: dict[str, Any] = {"job": spec.kind, "steps": spec.recipe.steps}
    for name, source in data.sources.items():
        count = len(source.dataset)
        found[f"{name} clips"] = count
        found[f"{name} clips in a batch"] = source.share
        found[f"{name} epochs"] = f"{spec.recipe.steps * source.share / count:.2f}"
        found[f"{name} classes"] = len(source.classes)
    for name, source in data.tests.items():
        found[f"{name} clips (test)"] = len(source.dataset)
    found["output"] = spec.output.path
    return found
