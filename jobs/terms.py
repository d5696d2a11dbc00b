"""What the spec of a training job may say of losses beside the cross-entropy."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from models import ClipConfig
from pipeline.plan import Frozen

PROMPTS = ("a photo of a {}.",)  # CLIP's own


class TextTower(Frozen):
    """A CLIP text tower of open_clip: arch, or a config file like its own; pretrained None is random."""

    arch: str
    pretrained: str | None = None


class Contrast(Frozen):
    """The clip's embedding is drawn to that of a text, and away from others (CLIP, arXiv:2103.00020).

    weight: of this loss, where the cross-entropy's is 1.
    against: "classes" tells the name of a clip's class from those of all classes of its head; "captions"
        tells each clip's caption, and each caption's clip, from those of all clips that all workers have in
        hand: batch / recipe.accumulate.
    clip: whose text tower, which stays frozen; None is that of the model's own CLIP.
    temperature: what cosines are divided by; None is what the tower was trained with.
    prompts: what a class name is put into, for its {}; the mean of all of them counts.
    """

    weight: PositiveFloat = 1.0
    against: Literal["classes", "captions"] = "classes"
    clip: TextTower | None = None
    temperature: PositiveFloat | None = None
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _prompts_fit(self) -> Self:
        if self.prompts is not None and self.against == "captions":
            raise ValueError("prompts are for names of classes, captions are texts already: leave them out")
        for prompt in self.prompts or ():
            if "{}" not in prompt:
                raise ValueError(f"prompts: {prompt!r}: the name of a class goes where {{}} stands; add it")
        return self

    def tower(self, own: ClipConfig | None) -> ClipConfig | None:
        """The text tower; `own` is the model's CLIP."""
        return own if self.clip is None else ClipConfig(arch=self.clip.arch, pretrained=self.clip.pretrained)


class Distill(Frozen):
    """The clip's embedding stays near that of the plain CLIP inside the model, on the same key frames.

    So that texts go on finding it while labels are learned. weight: of 1 - cosine, where the cross-entropy's
    is 1.
    """

    weight: PositiveFloat = 1.0
