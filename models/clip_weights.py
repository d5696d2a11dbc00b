"""Weights of CLIP towers, from open_clip tags or local files."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models import clip_layouts
from models.config import ClipConfig, suggest
from models.tokenizer import MEAN, STD
from models.towers import Statistics, tower
from models.weights import header


def state(config: ClipConfig) -> dict[str, Tensor]:
    """The state of `models.clip.Clip` (head aside) that `config.pretrained`, which must not be None, names.

    A path is read (.safetensors, or a pickle through torch's weights_only reader), in open_clip's, OpenAI's
    or Hugging Face's layout; anything else is an open_clip tag, which may download. Towers trained on other
    pixel statistics are converted to ours. ValueError or FileNotFoundError; never random weights instead.
    """
    return renormalised(*original(config))


def original(config: ClipConfig) -> tuple[dict[str, Tensor], Statistics]:
    """The same as it was trained, and the statistics of the pixels it was trained on."""
    check_source(config)
    return clip_layouts.image(_load(config), tower(config.arch), _source(config)), _pixels(config)


def text_state(config: ClipConfig) -> dict[str, Tensor]:
    """As `state`, but the text tower, under the names of open_clip's CustomTextCLIP."""
    check_source(config)
    return clip_layouts.text(_load(config), _source(config))


def shapes(config: ClipConfig) -> dict[str, Tensor] | None:
    """As `state`, on the meta device: without its data; None for a tag, which may have to be fetched."""
    check_source(config)
    if not _is_path(config):
        return None
    return clip_layouts.image(_read(config, meta=True), tower(config.arch), _source(config))


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
        f"{_source(config)}: open_clip could not load it ({first_line(error)}); "
        "give a local checkpoint file, or null for random weights"
    )


def renormalised(ours: dict[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
    """Weights that do on OUR pixel statistics what the given ones do on theirs.

    (p - mean) / std is linear in our normalised pixel: the factor goes into the patch kernel, the constant
    into the patch bias or, where there is none, into the patches' positions, which are added right after it.
    """
    mean, std = statistics
    if (tuple(mean), tuple(std)) == (MEAN, STD):
        return ours
    name = next(name for name in ours if name.startswith("patch.weight"))
    bias = name.replace("weight", "bias", 1)
    weight_DVC = ours[name].double().unflatten(1, (-1, 3))
    our_mean, our_std, mean_C, std_C = (torch.tensor(v, dtype=torch.float64) for v in (MEAN, STD, mean, std))
    constant_D = (weight_DVC * ((our_mean - mean_C) / std_C)).sum((1, 2))
    weight_DP = (weight_DVC * (our_std / std_C)).flatten(1)
    if bias in ours:
        shifted = {bias: ours[bias].double() + constant_D}
    else:
        positions_LD = ours["positional_embedding"].double().clone()
        positions_LD[1:] += constant_D
        shifted = {"positional_embedding": positions_LD}
    return {**ours, name: weight_DP.float(), **{name: tensor.float() for name, tensor in shifted.items()}}


def _load(config: ClipConfig) -> Mapping[str, Tensor]:
    return _read(config) if _is_path(config) else _download(config)


def _read(config: ClipConfig, *, meta: bool = False) -> Mapping[str, Tensor]:
    return read_file(Path(config.pretrained or ""), _source(config), meta=meta)


def read_file(path: Path, source: str, *, meta: bool = False) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors file, or of a pickle of plain tensors; with `meta` without their data.

    One-line ValueError that begins with `source`.
    """
    if path.suffix == ".safetensors":
        if meta:
            return header(path, source)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{source}: not a safetensors file: {error}") from None
    try:
        found = torch.load(path, map_location="meta" if meta else "cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{source}: not readable as plain tensors ({first_line(error)}); convert it to safetensors"
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


def _pixels(config: ClipConfig) -> Statistics:
    """(mean, std) the weights were trained on: the tag's; a file's are what all tags of its arch share.

    Without tags (the arch is a config file), what that file states, or OpenAI's.
    """
    tags = _tags(config)
    if not _is_path(config):
        tag = tags[_clean(config.pretrained)]
        return tag.get("mean", MEAN), tag.get("std", STD)
    shared = {(tag.get("mean", MEAN), tag.get("std", STD)) for tag in tags.values()}
    return shared.pop() if len(shared) == 1 else tower(config.arch).pixels or (MEAN, STD)


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


def first_line(error: Exception) -> str:
    """What an error says, short enough to stand inside another's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _source(config: ClipConfig) -> str:
    return f"model.clip.pretrained = {config.pretrained!r}"
