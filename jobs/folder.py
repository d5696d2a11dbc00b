"""The part of a job spec that says where it writes, if that has to be a disk."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator

from jobs.model import absolute
from pipeline.plan import Frozen


class Folder(Frozen):
    """path: the run's folder, on a disk that all workers see under that name."""

    path: Annotated[str, Field(min_length=1)]

    @field_validator("path")
    @classmethod
    def _on_a_disk(cls, path: str) -> str:
        if "://" in path:
            raise ValueError("its workers write to a folder that all of them see; give a path")
        return path

    def absolute(self) -> Self:
        return self.model_copy(update={"path": absolute(self.path)})
