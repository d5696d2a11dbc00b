"""CLIP's text tower, for zero-shot classification and search by text: open_clip's own, with its tokenizer.

N texts, C classes, T templates, B images, E embedding channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import clip_weights
from models.config import ClipConfig
from models.towers import config, tower
from models.weights import fit

BATCH = 256  # texts that go through the tower at once


class TextEncoder(nn.Module):
    """Texts to the space of the image tower of the same arch and weights; frozen, always in evaluation mode.

    clip: an open_clip.CustomTextCLIP; its image tower may be gone. tokenizer: texts -> int64 (N, tokens).
    """

    clip: Any

    def __init__(self, clip: nn.Module, tokenizer: Callable[[list[str]], Tensor], dim: int) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.tokenizer = tokenizer
        self.dim = dim
        self.train(False)

    def train(self, mode: bool = True) -> TextEncoder:
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before the softmax, about 100 (SigLIP: before the sigmoid)."""
        return self.clip.logit_scale.exp().item()

    @property
    def logit_bias(self) -> float:
        """What is added to them then: SigLIP's bias; 0 for CLIP."""
        return 0.0 if self.clip.logit_bias is None else self.clip.logit_bias.item()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """float32 (N, E), unnormalised. A text too long for the tower is cut off, as open_clip does."""
        if isinstance(texts, str):
            raise ValueError(f"texts = {texts!r}: must be a list of texts, not one")
        parts_NE = [torch.empty(0, self.dim, device=self.device)]
        for start in range(0, len(texts), BATCH):
            tokens = self.tokenizer(list(texts[start : start + BATCH]))
            parts_NE.append(self.clip.encode_text(tokens.to(self.device)).float())
        return torch.cat(parts_NE)

    def zero_shot(self, classes: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)) -> Tensor:
        """float32 (C, E), of unit length: a linear classifier of unit-length image embeddings.

        A class is the mean of its prompts' normalised embeddings, normalised again (arXiv:2103.00020, section
        3.1.4); a prompt is a template with the class for its {}.
        """
        if isinstance(classes, str):
            raise ValueError(f"classes = {classes!r}: must be a list of names, not one")
        if isinstance(templates, str) or not templates or not all("{}" in text for text in templates):
            raise ValueError(f"templates = {templates!r}: must be a list of texts, each with a {{}} in it")
        prompts = [text.replace("{}", name) for name in classes for text in templates]
        z_CTE = functional.normalize(self.encode(prompts), dim=-1).unflatten(0, (-1, len(templates)))
        return functional.normalize(z_CTE.mean(dim=1), dim=-1)


def similarity(images_BE: Tensor, texts_NE: Tensor) -> Tensor:
    """Cosines (B, N) of embeddings of any length."""
    return functional.normalize(images_BE, dim=-1) @ functional.normalize(texts_NE, dim=-1).T


def text_encoder(clip: ClipConfig, seed: int = 0) -> TextEncoder:
    """The text tower that belongs to the image tower `clip`, on the CPU, with the weights of the same source.

    `clip.pretrained` None gives random weights, always the same for a seed. The caller's random state is
    left alone. ValueError or FileNotFoundError name what is wrong.
    """
    check(clip)
    source, described = f"model.clip.arch = {clip.arch!r}", config(clip.arch or "")
    tokenizer = _tokenizer(described["text_cfg"], source)
    state = None if clip.pretrained is None else clip_weights.text_state(clip)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _build(described, source)
    if state is not None:
        fit(model.state_dict(), state, f"model.clip.pretrained = {clip.pretrained!r}")
        model.load_state_dict(state)
    return TextEncoder(model, tokenizer, described["embed_dim"])


def check(clip: ClipConfig) -> int:
    """Raise what `text_encoder` would, without weights or a tokenizer; the channels of its embeddings."""
    described = config(tower(clip.arch).arch)
    if clip.pretrained is not None:
        clip_weights.check_source(clip)
    if not isinstance(described.get("text_cfg"), dict):
        raise ValueError(f"model.clip.arch = {clip.arch!r}: it describes no text tower; add a text_cfg to it")
    return described["embed_dim"]


def _build(described: dict[str, Any], source: str) -> nn.Module:
    """The text half of open_clip's model, with random weights, scalars included."""
    import open_clip

    # open_clip makes no text tower alone: a tiny image tower comes with it, and goes.
    tiny = open_clip.CLIPVisionCfg(layers=1, width=64, patch_size=32, image_size=32)
    try:
        text = open_clip.CLIPTextCfg(**described["text_cfg"] | {"hf_model_pretrained": False})
        model = open_clip.CustomTextCLIP(
            embed_dim=described["embed_dim"],
            vision_cfg=tiny,
            text_cfg=text,
            quick_gelu=described.get("quick_gelu", False),
            init_logit_bias=described.get("init_logit_bias"),
        )
    except Exception as error:  # assertions, wrong types, and for text towers of transformers its downloads
        raise ValueError(
            f"{source}: its text_cfg makes no text tower ({clip_weights.first_line(error)})"
        ) from error
    del model.visual
    return model


def _tokenizer(text_cfg: dict[str, Any], source: str) -> Callable[[list[str]], Tensor]:
    """The one that open_clip.get_tokenizer gives for the same config."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    name = text_cfg.get("hf_tokenizer_name")
    options = {"context_length": text_cfg.get("context_length", 77), **text_cfg.get("tokenizer_kwargs", {})}
    if name:
        try:
            return HFTokenizer(name, tokenizer_mode=text_cfg.get("tokenizer_mode"), **options)
        except Exception as error:  # whatever transformers and its downloader raise
            raise ValueError(
                f"{source}: its tokenizer {name!r} comes from Hugging Face and could not be fetched "
                f"({clip_weights.first_line(error)}); run it once where the hub is in reach"
            ) from error
    tokenizer = SimpleTokenizer(**options)
    if text_cfg.get("vocab_size", tokenizer.vocab_size) < tokenizer.vocab_size:
        raise ValueError(
            f"{source}: text_cfg.vocab_size = {text_cfg['vocab_size']}: CLIP's tokenizer has "
            f"{tokenizer.vocab_size} tokens"
        )
    return tokenizer
