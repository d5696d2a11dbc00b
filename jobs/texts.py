"""What CLIP's text tower says of embeddings of its own image tower: zero-shot classes, and captions.

N videos, T captions, C classes, E channels of both towers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jobs.embedded import Embedded
from jobs.neighbours import ranks
from jobs.questions import Text
from models import clip_weights, registry
from models.config import ClipConfig
from models.text import TextEncoder, text_encoder
from pipeline.errors import SpecListError

NAME = "clip"  # the one model whose embeddings are those of the image tower


def clip_of(text: Text, embedded: Embedded) -> ClipConfig:
    """The CLIP that made the embeddings.

    Raises:
        SpecError: none did, or what it was made from is not there.
    """
    model = embedded.made.model
    if model.name != NAME:
        problem = f"are of {model.name}, and not in the space of a text tower, as those of {NAME} are"
        raise SpecListError([f"text: the embeddings {problem}; leave text out"])
    clip = registry.resolve(NAME, {"clip": model.clip}).clip
    assert clip is not None
    if text.pretrained is not None:
        clip = clip.model_copy(update={"pretrained": text.pretrained})
    elif model.checkpoint is not None:
        problem = (
            f"missing; the embeddings are from {model.checkpoint}, which holds no text tower: name its CLIP"
        )
        raise SpecListError([f"text.pretrained: {problem}"])
    try:
        if clip.pretrained is not None:
            clip_weights.check_source(clip)
    except (ValueError, OSError) as error:
        raise SpecListError([f"text.pretrained: {error}"]) from None
    return clip


def tower(text: Text, embedded: Embedded) -> TextEncoder:
    """The text tower beside the image tower that made the embeddings. SpecError in one line."""
    clip = clip_of(text, embedded)
    try:
        encoder = text_encoder(clip, embedded.made.model.seed)
    except (ValueError, OSError) as error:
        raise SpecListError([f"text.pretrained: {error}"]) from None
    if encoder.dim != embedded.dim:
        problem = f"{embedded.dim} channels, those of {clip.arch}'s text tower {encoder.dim}; leave text out"
        raise SpecListError([f"text: the embeddings have {problem}"])
    return encoder


def prompted(encoder: TextEncoder, classes: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """float32 (C, E): what unit-length embeddings are multiplied by for logits; "_" is read as a space."""
    names = [name.replace("_", " ") for name in classes]
    return encoder.logit_scale * encoder.zero_shot(names, prompts)


def captioned(
    encoder: TextEncoder, captions: Sequence[str | None], x_NE: Tensor, counts: Sequence[int]
) -> dict[str, Any]:
    """Recall from texts to videos and back: the share of queries with a match among the first k.

    Videos of one caption match it alike, and it is one query. Nothing where fewer than two are told apart.
    """
    texts = list(dict.fromkeys(text for text in captions if text))
    if len(texts) < 2:
        return {}
    numbers = {text: number for number, text in enumerate(texts)}
    there = [row for row, text in enumerate(captions) if text]
    x_ME = x_NE[there].to(encoder.clip.logit_scale.device)
    text_of_M = torch.tensor([numbers[captions[row] or ""] for row in there], device=x_ME.device)
    y_TE = functional.normalize(encoder.encode(texts), dim=1)
    number_T = torch.arange(len(texts), device=x_ME.device)
    to_video, to_text = ranks(y_TE, x_ME, number_T, text_of_M), ranks(x_ME, y_TE, text_of_M, number_T)
    return {
        "text to video": {str(k): (to_video < k).float().mean().item() for k in counts},
        "video to text": {str(k): (to_text < k).float().mean().item() for k in counts},
    }
