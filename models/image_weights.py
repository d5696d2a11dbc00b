"""Weights of image ViTs, for video models to start from, under the names of `models.clip`.

"patch.weight" (D, p*p*3 in (T, H, W, C) order), "patch.bias", "class_embedding" (D,), "positional_embedding"
(1 + patches, D), "norm_pre" if the tower has one, "blocks.*", "norm_post". D channels, P values of a kernel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from models import clip_weights
from models.clip_layouts import TIMM, substitute
from models.config import ClipConfig, InitConfig, Kernels
from models.tokenizer import from_conv3d, resizing
from pipeline.plan import CHANNELS, Sizes

# timm's VisionTransformer -> ours.
_TIMM = (*TIMM, (r"^cls_token$", "class_embedding"))
# torchvision's.
_TORCHVISION = (
    (r"^conv_proj\.", "patch."),
    (r"^class_token$", "class_embedding"),
    (r"^encoder\.pos_embedding$", "positional_embedding"),
    (r"^encoder\.ln\.", "norm_post."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_(weight|bias)$", r".attention.qkv.\1"),
    (r"\.self_attention\.out_proj\.", ".attention.out."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.up."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.down."),
)
# Hugging Face's ViTModel, as transformers 4 names its parts (and the files on its hub do), and as 5 does.
_HUGGING_FACE = (
    (r"^(vit\.)?embeddings\.patch_embeddings\.projection\.", "patch."),
    (r"^(vit\.)?embeddings\.cls_token$", "class_embedding"),
    (r"^(vit\.)?embeddings\.position_embeddings$", "positional_embedding"),
    (r"^(vit\.)?layernorm\.", "norm_post."),
    (r"^(vit\.)?(encoder\.layer|layers)\.(\d+)\.", r"blocks.\3."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attention.\1."),
    (r"\.attention\.q_proj\.", ".attention.query."),
    (r"\.attention\.k_proj\.", ".attention.key."),
    (r"\.attention\.v_proj\.", ".attention.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attention.out."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".mlp.up."),
    (r"^(blocks\.\d+)\.(output\.dense|mlp\.fc2)\.", r"\1.mlp.down."),
)
# A name that only that layout has -> the layout.
_LAYOUTS = {
    "patch_embed.proj.weight": _TIMM,
    "conv_proj.weight": _TORCHVISION,
    "vit.embeddings.patch_embeddings.projection.weight": _HUGGING_FACE,
    "embeddings.patch_embeddings.projection.weight": _HUGGING_FACE,
}
_HEADS = ("head.", "heads.", "fc_norm.", "classifier.", "pooler.", "vit.pooler.", "pre_logits.")


def read(config: InitConfig) -> dict[str, Tensor]:
    """The weights that `config` names, for our pixel statistics. One-line ValueError or FileNotFoundError."""
    check_source(config)
    if config.arch is not None:
        with _named():
            found, statistics = clip_weights.original(ClipConfig(arch=config.arch, pretrained=config.weights))
        # What reads the tower out is CLIP's; the models that start from it have readouts of their own.
        ours = {
            re.sub(r"^(patch\.\w+)\..*", r"\1", name): x
            for name, x in found.items()
            if not name.startswith(("proj", "pool."))
        }
    else:
        ours = rename(clip_weights.read_file(Path(config.weights), _source(config)), config)
        statistics = config.mean, config.std
    # With a bias all of the pixels' statistics go into the patches, which every model takes over.
    bias_D = torch.zeros(len(ours["patch.weight"]))
    return clip_weights.renormalised({"patch.bias": bias_D, **ours}, statistics)


def check_source(config: InitConfig) -> None:
    """Whether the file exists, or the tag is one of the arch's. One-line FileNotFoundError or ValueError."""
    if config.arch is not None:
        with _named():
            clip_weights.check_source(ClipConfig(arch=config.arch, pretrained=config.weights))
    elif not Path(config.weights).is_file():
        raise FileNotFoundError(
            f"{_source(config)}: no such file; give a ViT's weights, or an open_clip tag together with "
            "model.init.arch"
        )


@contextmanager
def _named() -> Iterator[None]:
    """What is said of a CLIP's weights, said of the field that they were named in here."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        text = str(error).replace("model.clip.pretrained", "model.init.weights")
        raise type(error)(text.replace("model.clip.arch", "model.init.arch")) from None


def rename(found: Mapping[str, Tensor], config: InitConfig) -> dict[str, Tensor]:
    """A plain ViT's state in our names, in float32, its classifier left out."""
    rules = next((rules for name, rules in _LAYOUTS.items() if name in found), None)
    if rules is None:
        raise ValueError(
            f"{_source(config)}: no plain ViT in there (keys such as {sorted(found)[:3]}); known are the "
            "layouts of timm, torchvision and Hugging Face's ViT, and with model.init.arch those of CLIP"
        )
    ours = {}
    for name, tensor in found.items():
        if name.startswith(_HEADS):
            continue
        ours[substitute(name, rules)] = tensor.float()
    for name in [name for name in ours if ".attention.query." in name]:
        parts = [ours.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        ours[name.replace("query", "qkv")] = torch.cat(parts)
    ours["patch.weight"] = from_conv3d(ours["patch.weight"].unsqueeze(2))
    ours["class_embedding"] = ours["class_embedding"].flatten()
    ours["positional_embedding"] = ours["positional_embedding"].flatten(0, -2)
    return ours


def tube_kernel(image_DP: Tensor, kernel: Sizes, kernels: Kernels) -> Tensor:
    """An image ViT's patch kernel (D, p*p*3) as the kernel of a tube, (D, kT*kH*kW*3).

    Resized in space, scaled by the ratio of the areas, and set at the central frame, index kT // 2, or spread
    over all (ViViT, arXiv:2103.15691, section 3.4): on a still, flat picture it gives what the image kernel
    gives, and a 2-D tube of the patch's size takes it unchanged.
    """
    side = math.isqrt(image_DP.shape[1] // CHANNELS)
    k_t, k_h, k_w = kernel
    image_DHWC = image_DP.unflatten(1, (side, side, CHANNELS))
    resized = torch.einsum("dhwc,Hh,Ww->dHWc", image_DHWC, resizing(side, k_h), resizing(side, k_w))
    resized = resized * (side * side / (k_h * k_w))
    out_DTHWC = resized.new_zeros(len(image_DP), k_t, k_h, k_w, CHANNELS)
    if kernels == "central":
        out_DTHWC[:, k_t // 2] = resized
    else:
        out_DTHWC[:] = resized[:, None] / k_t
    return out_DTHWC.flatten(1)


def _source(config: InitConfig) -> str:
    return f"model.init.weights = {config.weights!r}"
