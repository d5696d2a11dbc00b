"""What keeps a fine-tuned model in the space of the CLIP inside it, so that texts go on finding its clips.

B clips, E embedding channels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jobs.feed import Part
from models import clip_weights
from models.clip import Clip
from models.config import ModelConfig
from models.model import Model
from models.pretrained import clip_of
from models.tokenizer import matching
from pipeline.errors import SpecListError


class Distillation:
    """1 - the cosine of a clip's embedding and the plain CLIP's of it, the mean of its key frames.

    The teacher sees the same pixels, changed and mixed as they are. A model's plan contains that of the CLIP
    inside it, so whatever shards serve the model serve the teacher.
    """

    def __init__(self, model: Model, teacher: Clip) -> None:
        self._plans, self._teacher = model.plans, teacher

    def __call__(self, embeddings: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
        """The mean over all clips of `parts`, a number; `embeddings` are theirs, float32 (B, E) each."""
        # A DualPath's embedding ends in that of its spatial path, which alone starts as CLIP's.
        cosines = [
            functional.cosine_similarity(z[:, -self._teacher.dim :], self.target(part.tubes))
            for z, part in zip(embeddings, parts, strict=True)
        ]
        return 1 - torch.cat(cosines).mean()

    @torch.no_grad()
    def target(self, tubes: Mapping[str, Tensor]) -> Tensor:
        """float32 (B, E): what the teacher makes of a batch that was cut for the model."""
        held = matching(tubes, self._plans)
        wanted = next(plan for plan in self._teacher.plans if held.contains(plan))
        return self._teacher.embed(held.take(tubes, wanted))


def distillation(model: Model, *, started_from_checkpoint: bool) -> Distillation:
    """For a model as it is before it is trained, on its device.

    The teacher is the model's own tower where that stays frozen. Where it trains (grafted), it is a copy of
    what it was: of the weights in `model.clip.pretrained`, if the model's are those of a checkpoint.
    """
    assert model.config is not None
    check(model.config)
    clip, source = clip_of(model), model.config.clip
    if clip is model or not any(parameter.requires_grad for parameter in clip.parameters()):
        return Distillation(model, clip)
    teacher = copy.deepcopy(clip).requires_grad_(False)
    if started_from_checkpoint and source is not None and source.pretrained is not None:
        teacher.load_state_dict(clip_weights.state(source), strict=False)
    return Distillation(model, teacher)


def check(config: ModelConfig) -> None:
    """SpecError if the model has no CLIP to stay near."""
    if config.clip is None:
        problem = f"there is no CLIP inside {config.name} for it to stay near"
        raise SpecListError([f"recipe.distill: {problem}; leave it out, or take a model with one"])
