"""The names that CLIP weights go by: OpenAI's and open_clip's, timm's, Hugging Face's.

The image half of a checkpoint gets the names of `models.clip`, the text half those of open_clip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.plans import tube_name
from models.tokenizer import from_conv3d
from models.towers import Tower

Rules = tuple[tuple[str, str], ...]

# open_clip's (and OpenAI's) names of the image tower -> ours.
_OPEN_CLIP: Rules = (
    (r"^conv1\.", "patch."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm_post."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_(weight|bias)$", r".attention.qkv.\1"),
    (r"\.attn\.out_proj\.", ".attention.out."),
    (r"\.ls_([12])\.gamma$", r".scale\1.gain"),
    (r"\.mlp\.c_fc\.", ".mlp.up."),
    (r"\.mlp\.c_proj\.", ".mlp.down."),
)

# timm's names of a ViT, and of SigLIP's pooling -> ours.
TIMM: Rules = (
    (r"^patch_embed\.proj\.", "patch."),
    (r"^pos_embed$", "positional_embedding"),
    (r"^norm\.", "norm_post."),
    (r"^attn_pool\.latent$", "pool.query"),
    (r"^attn_pool\.(q|kv)\.", r"pool.attention.\1."),
    (r"^attn_pool\.proj\.", "pool.attention.out."),
    (r"^attn_pool\.", "pool."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.mlp\.fc1\.", ".mlp.up."),
    (r"\.mlp\.fc2\.", ".mlp.down."),
)

# Hugging Face's names of both halves -> open_clip's, and ours of SigLIP's pooling.
_HUGGING_FACE: Rules = (
    (r"^embeddings\.class_embedding$", "class_embedding"),
    (r"^embeddings\.patch_embedding\.", "conv1."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^pre_layrnorm\.", "ln_pre."),
    (r"^post_layernorm\.", "ln_post."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"^head\.(weight|bias)$", r"text_projection.\1"),
    (r"^head\.probe$", "pool.query"),
    (r"^head\.attention\.out_proj\.", "pool.attention.out."),
    (r"^head\.layernorm\.", "pool.norm."),
    (r"^head\.", "pool."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)

# Where open_clip keeps the text half: under "text.", or in older files side by side with "visual.".
_TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")


def image(found: Mapping[str, Tensor], image_tower: Tower, source: str) -> dict[str, Tensor]:
    """A checkpoint's image tower in our names; keys without a counterpart stay, for `fit` to report."""
    found = _without("module.", found)
    if any(name.startswith("vision_model.") for name in found):
        found = _from_hugging_face(found, "vision_model.", "visual_projection.weight", "proj")
    elif "embeddings.patch_embedding.weight" in found:  # an image tower alone
        found = _from_hugging_face(found, "", "visual_projection.weight", "proj")
    elif any(name.startswith("visual.") for name in found):
        found = _without("visual.", {name: t for name, t in found.items() if name.startswith("visual.")})
    found = _without("trunk.", found)
    rules = TIMM if "patch_embed.proj.weight" in found else _OPEN_CLIP
    kernel = tube_name((1, image_tower.patch, image_tower.patch))
    ours = {}
    for name, tensor in found.items():
        name = substitute(name, rules)
        if name == "patch.weight":
            tensor = from_conv3d(tensor.unsqueeze(2))
        elif name == "positional_embedding" and tensor.ndim == 3:
            tensor = tensor[0]
        ours[f"{name}.{kernel}" if name in ("patch.weight", "patch.bias") else name] = tensor.float()
    if f"patch.weight.{kernel}" not in ours:
        raise ValueError(
            f"{source}: no CLIP image tower in there (keys such as {sorted(found)[:3]}); expected 'visual.*' "
            "(OpenAI, open_clip) or 'vision_model.*' (Hugging Face)"
        )
    return ours


def text(found: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """A checkpoint's text tower as open_clip's CustomTextCLIP names it: "text.*", logit_scale, logit_bias."""
    found = _without("module.", found)
    scales = {
        name: found[name].float().reshape(()) for name in ("logit_scale", "logit_bias") if name in found
    }
    if any(name.startswith("text_model.") for name in found):
        half = _from_hugging_face(found, "text_model.", "text_projection.weight", "text_projection")
    elif any(name.startswith("text.") for name in found):
        half = _without("text.", {name: t for name, t in found.items() if name.startswith("text.")})
    else:
        half = {name: tensor for name, tensor in found.items() if name.startswith(_TEXT)}
    if not any(name.endswith("positional_embedding") or "embeddings." in name for name in half):
        raise ValueError(
            f"{source}: no text tower in there (keys such as {sorted(found)[:3]}); give a checkpoint of the "
            "whole CLIP, in the layout of OpenAI, open_clip or Hugging Face"
        )
    return {
        f"text.{name}": t.float() for name, t in half.items() if not name.endswith("position_ids")
    } | scales


def _from_hugging_face(
    found: Mapping[str, Tensor], prefix: str, projection: str, projection_name: str
) -> dict[str, Tensor]:
    """One half of Hugging Face's CLIPModel or SiglipModel in open_clip's names.

    open_clip joins q, k and v of the blocks and has projections transposed; the pooling of SigLIP is ours,
    where keys and values are joined, without the query.
    """
    theirs: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in found.items():
        if full_name == projection:
            theirs[projection_name] = tensor.T
            continue
        if not full_name.startswith(prefix) or full_name.endswith("position_ids"):
            continue
        name = substitute(full_name.removeprefix(prefix), _HUGGING_FACE)
        part = re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
        pool = re.fullmatch(r"pool\.attention\.in_proj_(weight|bias)", name)
        if part:
            joined.setdefault(f"{part[1]}.attn.in_proj_{part[3]}", {})[part[2]] = tensor
        elif pool:
            width = len(tensor) // 3
            theirs[f"pool.attention.q.{pool[1]}"] = tensor[:width]
            theirs[f"pool.attention.kv.{pool[1]}"] = tensor[width:]
        else:
            theirs[name] = tensor
    for name, parts in joined.items():
        if parts.keys() == {"q", "k", "v"}:
            theirs[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return theirs


def _without(prefix: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def substitute(name: str, rules: Rules) -> str:
    """A name after every rule, in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
