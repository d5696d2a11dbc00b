"""CLIP's contrastive loss: embeddings of clips against those of texts (Radford et al., arXiv:2103.00020).

B clips of this process, N of all processes, C classes, E embedding channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from jobs.feed import Part
from jobs.labels import Classes
from jobs.terms import PROMPTS, Contrast
from models import text
from models.config import ClipConfig, ModelConfig
from models.model import Model
from models.text import TextEncoder, similarity
from pipeline.errors import SpecError, SpecListError

BLOCK = 32  # texts that are embedded together


class ClassContrast:
    """Each clip among the names of all classes of its head: -log softmax(cosine / temperature).

    Clips of one class are no negatives of each other. Of several labels each counts alike.

    texts: {head: float32 (C, E)}.
    """

    def __init__(self, texts: Mapping[str, Tensor], temperature: float) -> None:
        self._texts, self._temperature = texts, temperature

    def __call__(self, embeddings: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
        """The mean over all clips of `parts`, a number; `embeddings` are theirs, float32 (B, E) each."""
        losses = []
        for z_BE, part in zip(embeddings, parts, strict=True):
            texts_CE = self._texts[part.head]
            own_BC = _among(part.targets, len(texts_CE))
            wanted_BC = own_BC.lerp(own_BC[part.partners], 1 - part.shares[:, None])
            losses.append(_losses(_cosines(z_BE, texts_CE) / self._temperature, wanted_BC))
        return torch.cat(losses).mean()


class CaptionContrast:
    """Each clip among the captions of all clips of all processes, and each caption among those clips.

    The mean of both (CLIP's Figure 3); of clips with one caption, each is right for all of it. What a process
    computes is its own clips' share of that, with gradients for the clips of all.
    """

    def __init__(self, texts: Texts, temperature: float) -> None:
        self._texts, self._temperature = texts, temperature

    def __call__(self, embeddings: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
        """As `ClassContrast`; every process must call it with as many clips."""
        z_BE = torch.cat(list(embeddings))
        captions = [part.captions for part in parts if part.captions is not None]
        own_B, shares_B = torch.cat(captions), torch.cat([part.shares for part in parts])
        others_B = torch.cat([x[part.partners] for x, part in zip(captions, parts, strict=True)])
        t_BE = self._texts(own_B.tolist()).to(z_BE.device)
        z_NE = _Gather.apply(z_BE)
        t_NE, own_N, others_N, shares_N = (_gathered(x) for x in (t_BE, own_B, others_B, shares_B))
        right_BN = _right(own_B, others_B, shares_B, own_N[:, None]).T
        clips = _losses(_cosines(z_BE, t_NE) / self._temperature, right_BN)
        right_BN = _right(own_N, others_N, shares_N, own_B[:, None])
        texts = _losses(_cosines(t_BE, z_NE) / self._temperature, right_BN)
        return (clips.mean() + texts.mean()) / 2


class Texts:
    """Embeddings of texts, computed when they are first asked for, and then kept in memory.

    By blocks that follow each other, so that what a text gives, to the last bit, does not depend on those
    that are asked for with it. texts: by their numbers.
    """

    def __init__(self, encoder: TextEncoder, texts: Sequence[str]) -> None:
        self._encoder, self._texts = encoder, texts
        self._kept: dict[int, Tensor] = {}

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        """float32 (B, E), on the CPU."""
        return torch.stack([self._block(number // BLOCK)[number % BLOCK] for number in numbers])

    def _block(self, block: int) -> Tensor:
        if block not in self._kept:
            texts = self._texts[block * BLOCK : (block + 1) * BLOCK]
            with torch.autocast(self._encoder.device.type, enabled=False):
                self._kept[block] = self._encoder.encode(texts).cpu()
        return self._kept[block]


def contrast(
    wanted: Contrast, model: Model, classes: Classes, captions: Sequence[str], device: torch.device
) -> ClassContrast | CaptionContrast:
    """The loss that a spec asks for. SpecError: see `check`; or the tower's weights cannot be had."""
    assert model.config is not None
    clip = check(wanted, model.config, model.dim)
    try:
        encoder = text.text_encoder(clip).to(device)
    except (ValueError, OSError) as error:
        raise _told(wanted, error) from None
    temperature = wanted.temperature or 1 / encoder.logit_scale
    if wanted.against == "captions":
        return CaptionContrast(Texts(encoder, captions), temperature)
    prompts = wanted.prompts or PROMPTS
    return ClassContrast(
        {head: encoder.zero_shot(names, prompts) for head, names in classes.items()}, temperature
    )


def check(wanted: Contrast, config: ModelConfig, dim: int) -> ClipConfig:
    """The text tower for a model whose embedding has `dim` channels.

    Raises:
        SpecError: there is none, or its embedding has not as many.
    """
    clip = wanted.tower(config.clip)
    if clip is None:
        problem = f"missing; {config.name} has no CLIP whose text tower could be taken"
        raise SpecListError([f"recipe.contrast.clip: {problem}: name one, with arch and pretrained"])
    try:
        channels = text.check(clip)
    except (ValueError, OSError) as error:
        raise _told(wanted, error) from None
    if channels != dim:
        problem = (
            f"its texts have {channels} channels, the embedding of {config.name} has {dim}; take a model"
        )
        remedy = "in CLIP's space (gated, grafted, aim, st-adapter), or another tower"
        raise SpecError("recipe.contrast.clip.arch", clip.arch, f"{problem} {remedy}")
    return clip


def _told(wanted: Contrast, error: Exception) -> SpecError:
    """In the words of the spec."""
    line = str(error)
    return SpecListError(
        [line if wanted.clip is None else line.replace("model.clip", "recipe.contrast.clip")]
    )


def _among(targets: Tensor, classes: int) -> Tensor:
    """What each clip is, as float32 (B, C) that sum to 1: of int64 (B,), or of float32 (B, C) marks."""
    marked = functional.one_hot(targets, classes).float() if targets.ndim == 1 else targets
    return marked / marked.sum(1, keepdim=True)


def _right(own_N: Tensor, others_N: Tensor, shares_N: Tensor, captions_B1: Tensor) -> Tensor:
    """float32 (B, N): how much of each of N clips is of each of B captions."""
    return torch.where(own_N == captions_B1, shares_N, 0) + torch.where(
        others_N == captions_B1, 1 - shares_N, 0
    )


def _cosines(a_BE: Tensor, b_NE: Tensor) -> Tensor:
    """(B, N), in float32 also under autocast: they are divided by a small temperature."""
    with torch.autocast(a_BE.device.type, enabled=False):
        return similarity(a_BE, b_NE)


def _losses(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropies, a row each; of what is wanted those of a row are made to sum to 1."""
    return functional.cross_entropy(logits, wanted / wanted.sum(1, keepdim=True), reduction="none")


def _gathered(x: Tensor) -> Tensor:
    """The rows of all processes, one after the other, without gradients."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _Gather(Function):
    """The same, and to each row goes the sum of the gradients that all processes have for it."""

    @staticmethod
    def forward(ctx: Any, x_BE: Tensor) -> Tensor:
        return _gathered(x_BE)

    @staticmethod
    def backward(ctx: Any, gradient_NE: Tensor) -> Tensor:
        total_NE = gradient_NE.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total_NE)
        return total_NE.chunk(dist.get_world_size())[dist.get_rank()]
