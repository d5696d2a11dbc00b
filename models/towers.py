"""Image towers as open_clip's config files describe them, read without importing it (nor torch)."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from models.config import Activation, suggest

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]  # (mean, std) of RGB in 0..1

# The settings a plain ViT may have, and of which type they are; any other one changes the architecture in
# ways that `models.clip` does not follow.
_NEEDED = ("image_size", "patch_size", "width", "layers")
_OPTIONAL: dict[str, tuple[type, ...]] = {
    "head_width": (int,),
    "mlp_ratio": (int, float),
    "ls_init_value": (int, float, type(None)),
    "no_ln_pre": (bool,),
    "pool_type": (str,),
    "final_ln_after_pool": (bool,),
}

# SigLIP's towers in timm: width, layers, heads and MLP width of a size, and which GELU a tower has.
_SIGLIP_NAME = r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_(\d+)"
_SIGLIP_SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
_SIGLIP: dict[str, Activation] = {
    "vit_base_patch32_siglip_256": "gelu_tanh",
    "vit_base_patch16_siglip_224": "gelu",
    "vit_base_patch16_siglip_256": "gelu",
    "vit_base_patch16_siglip_384": "gelu",
    "vit_base_patch16_siglip_512": "gelu",
    "vit_large_patch16_siglip_256": "gelu",
    "vit_large_patch16_siglip_384": "gelu",
    "vit_large_patch16_siglip_512": "gelu_tanh",
    "vit_so400m_patch14_siglip_224": "gelu",
    "vit_so400m_patch14_siglip_378": "gelu",
    "vit_so400m_patch14_siglip_384": "gelu",
    "vit_so400m_patch16_siglip_256": "gelu_tanh",
    "vit_so400m_patch16_siglip_384": "gelu_tanh",
    "vit_so400m_patch16_siglip_512": "gelu_tanh",
    "vit_giantopt_patch16_siglip_256": "gelu_tanh",
    "vit_giantopt_patch16_siglip_384": "gelu_tanh",
}


@dataclass(frozen=True)
class Tower:
    """One ViT of open_clip: sizes in pixels and channels, and the variants of its parts.

    `pool`: "tok" takes the class token, "avg" the mean of the others; "map", attention pooling, is what
    makes a SigLIP tower: no class token, no projection, but a bias on the patches.
    """

    arch: str
    image_size: int
    patch: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    embed_dim: int
    activation: Activation
    layer_scale: float | None = None
    norm_pre: bool = True
    pool: Literal["tok", "avg", "map"] = "tok"
    pool_then_norm: bool = False
    eps: float = 1e-5
    pixels: Statistics | None = None  # what its weights were trained on, if the config or the form tells

    @property
    def grid(self) -> int:
        """Patches along each side of the image that the positional embedding was made for."""
        return self.image_size // self.patch

    @property
    def class_tokens(self) -> int:
        """How many tokens stand before the patches: 1, or 0."""
        return 0 if self.pool == "map" else 1


def tower(arch: str | None) -> Tower:
    """The tower `arch`: an open_clip name, or the path of a config file like open_clip's, ending in .json.

    ValueError in a line if there is none, or if it is neither a plain ViT nor SigLIP's.
    """
    return _of_file(arch) if is_file(arch) else _of_name(arch)


def is_file(arch: str | None) -> bool:
    """Whether `arch` means a config file rather than a name."""
    return arch is not None and arch.endswith(".json")


def supported() -> list[str]:
    """Every open_clip arch whose image tower is a plain ViT, or SigLIP's."""
    return sorted(path.stem for path in _configs().glob("*.json") if not _oddities(_read(path)))


def config(arch: str) -> dict[str, Any]:
    """What the config file of a tower says, its text half included; `arch` must be one that `tower` takes."""
    found = _read(Path(arch) if is_file(arch) else _configs() / f"{arch}.json")
    return found.get("model_cfg", found)


@lru_cache
def _of_name(arch: str | None) -> Tower:
    if arch is None or arch not in {path.stem for path in _configs().glob("*.json")}:
        raise ValueError(
            f"model.clip.arch = {arch!r}: not an open_clip ViT; {suggest(arch or '', supported())}, "
            "or give a config file that ends in .json"
        )
    odd = _oddities(config(arch))
    if odd:
        raise ValueError(
            f"model.clip.arch = {arch!r}: unsupported image tower (it has {', '.join(odd)}); "
            f"{suggest(arch, supported())}"
        )
    return _tower(arch, config(arch))


def _of_file(arch: str | None) -> Tower:
    source, way_out = f"model.clip.arch = {arch!r}", "give an open_clip config file, or the name of an arch"
    try:
        whole = _read(Path(arch or ""))
    except OSError as error:
        raise ValueError(f"{source}: cannot be read ({error.strerror}); {way_out}") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"{source}: not JSON ({str(error).splitlines()[0]}); {way_out}") from None
    found = whole.get("model_cfg", whole) if isinstance(whole, dict) else whole
    odd = _oddities(found)
    if odd:
        raise ValueError(
            f"{source}: unsupported image tower (it has {', '.join(odd)}); it needs embed_dim and, in "
            "vision_cfg, image_size, patch_size, width and layers, as open_clip's ViT-B-32.json"
        )
    try:
        return _tower(arch or "", found, _stated_pixels(whole))
    except ValueError as error:
        raise ValueError(f"{source}: {error}; leave them out for CLIP's own") from None


def _tower(arch: str, config: dict[str, Any], pixels: Statistics | None = None) -> Tower:
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        size, patch, image_size = _siglip(vision["timm_model_name"])
        width, layers, heads, mlp_dim = _SIGLIP_SIZES[size]
        return Tower(
            arch=arch,
            image_size=image_size,
            patch=patch,
            width=width,
            layers=layers,
            heads=heads,
            mlp_dim=mlp_dim,
            embed_dim=width,
            activation=_SIGLIP[vision["timm_model_name"]],
            norm_pre=False,
            pool="map",
            eps=1e-6,
            pixels=pixels or ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        )
    return Tower(
        arch=arch,
        image_size=vision["image_size"],
        patch=vision["patch_size"],
        width=vision["width"],
        layers=vision["layers"],
        heads=vision["width"] // vision.get("head_width", 64),
        mlp_dim=int(vision["width"] * vision.get("mlp_ratio", 4.0)),
        embed_dim=config["embed_dim"],
        activation="quick_gelu" if config.get("quick_gelu", False) else "gelu",
        layer_scale=vision.get("ls_init_value"),
        norm_pre=not vision.get("no_ln_pre", False),
        pool=vision.get("pool_type", "tok"),
        pool_then_norm=vision.get("final_ln_after_pool", False),
        pixels=pixels,
    )


def _configs() -> Path:
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("CLIP towers need open_clip: pip install open_clip_torch")
    return Path(found.origin).parent / "model_configs"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _stated_pixels(whole: dict[str, Any]) -> Statistics | None:
    """The pixel statistics that a config from the Hugging Face hub states. ValueError if they are none."""
    stated = whole.get("preprocess_cfg", {})
    if "mean" not in stated and "std" not in stated:
        return None
    try:
        (r, g, b), (r_std, g_std, b_std) = stated["mean"], stated["std"]
        return (float(r), float(g), float(b)), (float(r_std), float(g_std), float(b_std))
    except (KeyError, TypeError, ValueError):
        raise ValueError("mean and std in preprocess_cfg must be three numbers each") from None


def _oddities(config: Any) -> list[str]:
    """Settings that make this something else than a ViT we have; among them, those that are missing."""
    vision = config.get("vision_cfg") if isinstance(config, dict) else None
    if not isinstance(vision, dict):
        return ["no vision_cfg"]
    odd = [] if _positive(config.get("embed_dim")) else [f"embed_dim = {config.get('embed_dim')}"]
    return odd + (_siglip_oddities(config, vision) if "timm_model_name" in vision else _vit_oddities(vision))


def _vit_oddities(vision: dict[str, Any]) -> list[str]:
    odd = sorted(vision.keys() - _OPTIONAL.keys() - set(_NEEDED))
    odd += [f"{name} = {vision.get(name)}" for name in _NEEDED if not _positive(vision.get(name))]
    odd += [
        f"{name} = {vision[name]}"
        for name, types in _OPTIONAL.items()
        if name in vision and type(vision[name]) not in types
    ]
    if vision.get("pool_type", "tok") not in ("tok", "avg"):
        odd.append(f"pool_type = {vision['pool_type']}")
    if odd:
        return odd
    head_width = vision.get("head_width", 64)
    if head_width < 1 or vision["width"] % head_width:
        odd.append(f"width = {vision['width']} but head_width = {head_width}")
    if vision["image_size"] < vision["patch_size"]:
        odd.append(f"image_size = {vision['image_size']} but patch_size = {vision['patch_size']}")
    return odd


def _siglip_oddities(config: dict[str, Any], vision: dict[str, Any]) -> list[str]:
    if vision["timm_model_name"] not in _SIGLIP:
        return [f"timm_model_name = {vision['timm_model_name']}"]
    size, _, image_size = _siglip(vision["timm_model_name"])
    expected = {
        "image_size": image_size,
        "timm_model_name": vision["timm_model_name"],
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    odd = sorted(vision.keys() - expected.keys())
    odd += [f"{name} = {vision.get(name)}" for name, value in expected.items() if vision.get(name) != value]
    if config.get("embed_dim") != _SIGLIP_SIZES[size][0]:
        odd.append(f"embed_dim = {config.get('embed_dim')} but width = {_SIGLIP_SIZES[size][0]}")
    return odd


def _siglip(name: str) -> tuple[str, int, int]:
    """Size, patch and image size of one of timm's SigLIP towers, which its name tells."""
    found = re.fullmatch(_SIGLIP_NAME, name)
    assert found is not None
    return found[1], int(found[2]), int(found[3])


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0
