"""The part of a job spec that says where: on which cluster, and what a job that is sent there finds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from pipeline.errors import SpecError
from pipeline.plan import Frozen


class Environment(Frozen):
    """What a submitted job finds on the cluster's nodes beside what is installed there.

    pip: pinned requirements, or a file of them: every node installs them, for this job alone; where Ray runs
        in a virtual environment, into a copy of that.
    image: a container image with this project in it: its code runs, and none is sent.
    env: environment variables of the job and its workers. A run's folder does not keep them.
    """

    pip: str | tuple[str, ...] | None = None
    image: str | None = None
    env: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.pip is not None and self.image is not None:
            raise ValueError("pip and image exclude each other; keep one")
        return self


class Entrypoint(Frozen):
    """What a submitted job reserves for itself; without any of it, it runs on the head.

    Workers do not leave it out of their count: give numbers in `resources`, too, where the room is tight.
    """

    cpus: NonNegativeFloat = 0.0
    gpus: NonNegativeFloat = 0.0
    memory_bytes: NonNegativeInt = 0


class Cluster(Frozen):
    """address: a running cluster; None is RAY_ADDRESS, and without that a local one for this job alone.

    wait_seconds: how long nothing may be finished while workers are missing, because the cluster grows or has
        lost nodes, before the job fails.
    environment, entrypoint: of a job that is submitted; its cluster is the one it was sent to.
    """

    address: str | None = None
    wait_seconds: PositiveFloat = 1800.0
    environment: Environment = Environment()
    entrypoint: Entrypoint = Entrypoint()


def requirements(pip: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """What is to be installed, line by line.

    Raises:
        SpecError: the file cannot be read, or a line leaves open which version it means.
    """
    if isinstance(pip, str):
        try:
            pip = tuple(Path(pip).expanduser().read_text().splitlines())
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text"
            problem = f"cannot be read ({reason}); name a file of requirements, or list them"
            raise SpecError("ray.environment.pip", pip, problem) from None
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in pip or ()]
    for line in filter(None, lines):
        name = line.partition(";")[0]
        if not (line.startswith("--") or " @ " in name or ("==" in name and "*" not in name)):
            problem = "names no version, and nodes may differ; write it as name==1.2.3"
            raise SpecError("ray.environment.pip", line, problem)
    return tuple(filter(None, lines))
