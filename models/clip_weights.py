"""Weights of CLIP image towers, from open_clip tags or local files, under the names of `models.clip`."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.config import ClipConfig, suggest
from models.plans import tube_name
from models.tokenizer import MEAN, STD, from_conv3d
from models.towers import Tower, tower
from models.weights import header

# open_clip's (and OpenAI's) names of the image tower -> ours. The patch kernel is handled apart.
_OPEN_CLIP = (
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

# Hugging Face's CLIPVisionModelWithProjection -> open_clip's; q, k, v and the projection are handled apart.
_HUGGING_FACE = (
    (r"^embeddings\.class_embedding$", "class_embedding"),
    (r"^embeddings\.patch_embedding\.weight$", "conv1.weight"),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^pre_layrnorm\.", "ln_pre."),
    (r"^post_layernorm\.", "ln_post."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def state(config: ClipConfig) -> dict[str, Tensor]:
    """The state of `models.clip.Clip` (head aside) that `config.pretrained`, which must not be None, names.

    A path is read (.safetensors, or a pickle through torch's weights_only reader), in open_clip's, OpenAI's
    or Hugging Face's layout; anything else is an open_clip tag, which may download. Towers trained on other
    pixel statistics are converted to ours. ValueError or FileNotFoundError; never random weights instead.
    """
    check_source(config)
    image_tower = tower(config.arch)
    found = _read(config) if _is_path(config) else _download(config)
    return renormalised(rename(found, image_tower, _source(config)), *_pixels(config))


def shapes(config: ClipConfig) -> dict[str, Tensor] | None:
    """As `state`, on the meta device: without its data; None for a tag, which may have to be fetched."""
    check_source(config)
    if not _is_path(config):
        return None
    return rename(_read(config, meta=True), tower(config.arch), _source(config))


def check_source(config: ClipConfig) -> None:
    """Whether the file exists, or the tag is one of the arch's. One-line FileNotFoundError or ValueError."""
    if _is_path(config):
        if not Path(config.pretrained or "").is_file():
            raise FileNotFoundError(
                f"{_source(config)}: no such file; give a checkpoint file, an open_clip tag, "
                "or null for random weights"
            )
        return
    tags = _tags(config)
    if _clean(config.pretrained) not in tags:
        raise ValueError(
            f"{_source(config)}: neither a file nor an open_clip tag of {config.arch}; "
            f"{suggest(config.pretrained or '', tags)}, or give a local file, or null for random weights"
        )
    if tags[_clean(config.pretrained)].get("quick_gelu") and tower(config.arch).activation != "quick_gelu":
        raise ValueError(
            f"{_source(config)}: these weights were trained with QuickGELU; "
            f"set model.clip.arch to '{config.arch}-quickgelu'"
        )


def fetch(config: ClipConfig) -> None:
    """Download a tag's weights into the cache of this machine, without reading them. ValueError in a line."""
    check_source(config)
    if _is_path(config):
        return
    import open_clip

    try:
        open_clip.download_pretrained(open_clip.get_pretrained_cfg(config.arch or "", config.pretrained))
    except Exception as error:  # open_clip passes on whatever its downloaders raise
        raise _no_download(config, error) from error


def _no_download(config: ClipConfig, error: Exception) -> ValueError:
    return ValueError(
        f"{_source(config)}: open_clip could not load it ({_first_line(error)}); "
        "give a local checkpoint file, or null for random weights"
    )


def rename(found: Mapping[str, Tensor], image_tower: Tower, source: str) -> dict[str, Tensor]:
    """A checkpoint's image tower in our names; keys without a counterpart stay, for `fit` to report."""
    found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    if any(name.startswith("vision_model.") for name in found):
        found = _from_hugging_face(found)
    elif any(name.startswith("visual.") for name in found):
        found = {name[7:]: tensor for name, tensor in found.items() if name.startswith("visual.")}
    if "conv1.weight" not in found:
        raise ValueError(
            f"{source}: no CLIP image tower in there (keys such as {sorted(found)[:3]}); expected 'visual.*' "
            "(OpenAI, open_clip) or 'vision_model.*' (Hugging Face)"
        )
    ours = {}
    for name, tensor in found.items():
        if name == "conv1.weight":
            name, tensor = f"patch.weight.{_kernel(image_tower)}", from_conv3d(tensor.unsqueeze(2))
        ours[_substitute(name, _OPEN_CLIP)] = tensor.float()
    return ours


def renormalised(
    ours: dict[str, Tensor], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Tensor]:
    """Weights that do on OUR pixel statistics what the given ones do on theirs.

    (p - mean) / std is linear in our normalised pixel: the factor goes into the patch kernel, the constant
    into the positions of the patches, which are added right after it.
    """
    if (tuple(mean), tuple(std)) == (MEAN, STD):
        return ours
    name = next(name for name in ours if name.startswith("patch.weight."))
    weight_DVC = ours[name].double().unflatten(1, (-1, 3))
    our_mean, our_std, mean_C, std_C = (torch.tensor(v, dtype=torch.float64) for v in (MEAN, STD, mean, std))
    positions_LD = ours["positional_embedding"].double().clone()
    positions_LD[1:] += (weight_DVC * ((our_mean - mean_C) / std_C)).sum((1, 2))
    weight_DP = (weight_DVC * (our_std / std_C)).flatten(1)
    return {**ours, name: weight_DP.float(), "positional_embedding": positions_LD.float()}


def _from_hugging_face(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's names to open_clip's, which joins q, k and v."""
    theirs: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in found.items():
        if full_name == "visual_projection.weight":
            theirs["proj"] = tensor.T
        if not full_name.startswith("vision_model.") or full_name.endswith("position_ids"):
            continue
        name = _substitute(full_name.removeprefix("vision_model."), _HUGGING_FACE)
        part = re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
        if part:
            joined.setdefault(f"{part[1]}.attn.in_proj_{part[3]}", {})[part[2]] = tensor
        else:
            theirs[name] = tensor
    for name, parts in joined.items():
        if parts.keys() == {"q", "k", "v"}:
            theirs[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return theirs


def _substitute(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _read(config: ClipConfig, *, meta: bool = False) -> Mapping[str, Tensor]:
    path = Path(config.pretrained or "")
    if path.suffix == ".safetensors":
        if meta:
            return header(path, _source(config))
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{_source(config)}: not a safetensors file: {error}") from None
    try:
        found = torch.load(path, map_location="meta" if meta else "cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{_source(config)}: not readable as plain tensors ({_first_line(error)}); "
            "convert it to safetensors"
        ) from None
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _download(config: ClipConfig) -> Mapping[str, Tensor]:
    import open_clip

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of open_clip about text towers; ours were checked above
            model = open_clip.create_model(config.arch or "", pretrained=config.pretrained, weights_only=True)
    except Exception as error:  # open_clip passes on whatever its downloaders raise
        raise _no_download(config, error) from error
    return model.state_dict()


def _pixels(config: ClipConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) the weights were trained on: the tag's; a file's are what all tags of its arch share."""
    tags = _tags(config)
    if not _is_path(config):
        tag = tags[_clean(config.pretrained)]
        return tag.get("mean", MEAN), tag.get("std", STD)
    shared = {(tag.get("mean", MEAN), tag.get("std", STD)) for tag in tags.values()}
    return shared.pop() if len(shared) == 1 else (MEAN, STD)


def _tags(config: ClipConfig) -> dict[str, dict]:
    import open_clip

    arch = config.arch or ""
    return {
        tag: open_clip.get_pretrained_cfg(arch, tag) for tag in open_clip.list_pretrained_tags_by_model(arch)
    }


def _is_path(config: ClipConfig) -> bool:
    path = Path(config.pretrained or "")
    return path.suffix in (".safetensors", ".pt", ".pth", ".bin") or len(path.parts) > 1 or path.is_file()


def _clean(tag: str | None) -> str:
    return (tag or "").lower().replace("-", "_")  # as open_clip looks tags up


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _source(config: ClipConfig) -> str:
    return f"model.clip.pretrained = {config.pretrained!r}"


def _kernel(image_tower: Tower) -> str:
    return tube_name((1, image_tower.patch, image_tower.patch))
