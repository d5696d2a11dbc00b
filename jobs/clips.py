"""Which clips a job learns from, or is tested on, as its spec names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, PositiveFloat, model_validator

from jobs.model import absolute
from pipeline.plan import Frozen
from pipeline.sampling import Sampling

Fraction = Annotated[float, Field(ge=0, le=1)]


class Clips(Frozen):
    """Clips or images to be tested on.

    shards: the output folder of a `kind: shard` job, or the folder of one of its sets (OUT/shards/image).
    videos: in its place, a folder, a glob or a table of videos, or of images, which are decoded when they are
        wanted. Each, or each annotated part of one, is a clip; of all views that `sampling` would make of it
        an epoch shows one.
    split: only the clips of this split, or of these; None: all of them.
    head: the name of its label space; datasets with one head share their classes. None: its own name.
    """

    shards: str | None = None
    videos: Annotated[str, Field(min_length=1)] | None = None
    sampling: Sampling | None = None
    split: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    head: Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.shards is None) == (self.videos is None):
            raise ValueError("give either shards (the output folder of a shard job) or videos")
        if self.shards is not None and self.sampling is not None:
            raise ValueError("shards are sampled already: leave sampling out, or give videos")
        if self.videos is not None and self.sampling is None:
            object.__setattr__(self, "sampling", Sampling())
        return self

    @property
    def source(self) -> Literal["shards", "videos"]:
        """Which of the two it names."""
        return "shards" if self.videos is None else "videos"

    @property
    def path(self) -> str:
        """Where they lie."""
        return self.shards or self.videos or ""

    def absolute(self) -> Self:
        """The same with a path that means the same in every process of this machine."""
        return self.model_copy(update={self.source: absolute(self.path)})


class Data(Clips):
    """Clips or images to learn from.

    weight: its share of each batch, beside those of the others. flip: how often one of it is mirrored; None:
        as recipe.augment says.
    """

    weight: PositiveFloat = 1.0
    flip: Fraction | None = None


AnyClips = TypeVar("AnyClips", bound=Clips)


def at_home(data: Mapping[str, AnyClips]) -> dict[str, AnyClips]:
    """Datasets with paths that mean the same in every process of this machine."""
    return {name: one.absolute() for name, one in data.items()}
