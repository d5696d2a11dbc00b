"""What the spec of a probe job may ask: which embeddings, learned from where, and judged how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from jobs.folder import Folder
from jobs.model import absolute
from pipeline.plan import Frozen


class Split(Frozen):
    """Names in the column `split`: of the videos that are learned from, and of those that are asked about."""

    train: str = "train"
    test: str = "test"

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.train == self.test:
            raise ValueError(f"train and test are both {self.train!r}: what is learned must not be asked")
        return self


class Text(Frozen):
    """Questions to the text tower of the CLIP that made the embeddings; no other model's lie in its space.

    prompts: for zero-shot classification; a class stands in place of {}.
    pretrained: where that CLIP's weights are now; None: where the embed job had them from.
    """

    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = ("a video of {}.",)
    pretrained: str | None = None

    @model_validator(mode="after")
    def _with_a_gap(self) -> Self:
        for prompt in self.prompts:
            if "{}" not in prompt:
                raise ValueError(f"prompts: {prompt!r} has no {{}}, which a class takes the place of")
        return self


class ProbeSpec(Frozen):
    """Find out what embeddings are worth.

    embeddings: the output folder of a `kind: embed` job.
    split: learn from one split, ask about another. leave_out: or ask about each group of the column `group`,
        having learned from all others. Without either: split, by the names `train` and `test`.
    neighbours: how many of them vote (k-NN); more than there are: all.
    recall: among how many of the nearest one that is right has to be.
    multi_label: any number of labels a video: a linear probe alone, by mean average precision.
    seed: of the part of the training videos that the weight decay is chosen on.
    """

    version: Literal[1]
    kind: Literal["probe"]
    embeddings: Annotated[str, Field(min_length=1)]
    split: Split | None = None
    leave_out: Literal["group"] | None = None
    neighbours: tuple[PositiveInt, ...] = (1, 5, 20)
    recall: tuple[PositiveInt, ...] = (1, 5, 10)
    text: Text | None = None
    multi_label: bool = False
    seed: NonNegativeInt = 0
    output: Folder

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if self.split is not None and self.leave_out is not None:
            raise ValueError("split and leave_out exclude each other; keep one")
        if self.split is None and self.leave_out is None:
            object.__setattr__(self, "split", Split())
        if self.multi_label and self.text is not None:
            raise ValueError("text with multi_label: a prompt names one class a video; leave one of them out")
        return self

    def absolute(self) -> Self:
        """The same with paths that do not depend on the working directory; weights may be one, or a tag."""
        text = self.text
        if text is not None and text.pretrained is not None and Path(text.pretrained).exists():
            text = text.model_copy(update={"pretrained": absolute(text.pretrained)})
        given = {"embeddings": absolute(self.embeddings), "text": text, "output": self.output.absolute()}
        return self.model_copy(update=given)

    def identity(self) -> dict[str, Any]:
        """What the numbers depend on."""
        return self.model_dump(mode="json", exclude={"output"})
