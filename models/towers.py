"""What open_clip says of an image tower, read from its config files without importing it (nor torch)."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from models.config import Activation, suggest

# Every setting a tower may have; any other changes the architecture in ways `models.clip` does not follow.
_KNOWN = {
    "image_size",
    "patch_size",
    "width",
    "layers",
    "head_width",
    "mlp_ratio",
    "ls_init_value",
    "no_ln_pre",
    "pool_type",
    "final_ln_after_pool",
}


@dataclass(frozen=True)
class Tower:
    """One open_clip VisionTransformer: sizes in pixels and channels, and the variants of its parts."""

    arch: str
    image_size: int
    patch: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    embed_dim: int
    activation: Activation
    layer_scale: float | None
    norm_pre: bool
    pool: str  # "tok": the class token; "avg": the mean of the others
    pool_then_norm: bool

    @property
    def grid(self) -> int:
        """Patches along each side of the image that the positional embedding was made for."""
        return self.image_size // self.patch


@lru_cache
def tower(arch: str | None) -> Tower:
    """The tower named `arch`. ValueError if open_clip has none of that name, or one that is no plain ViT."""
    folder = _configs()
    if arch is None or arch not in {path.stem for path in folder.glob("*.json")}:
        raise ValueError(
            f"model.clip.arch = {arch!r}: not an open_clip ViT; {suggest(arch or '', supported())}"
        )
    config = _read(folder / f"{arch}.json")
    odd = _oddities(config)
    if odd:
        raise ValueError(
            f"model.clip.arch = {arch!r}: unsupported image tower (it has {', '.join(odd)}); "
            f"{suggest(arch, supported())}"
        )
    vision = config["vision_cfg"]
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
    )


def supported() -> list[str]:
    """Every open_clip arch whose image tower is a plain ViT."""
    return sorted(path.stem for path in _configs().glob("*.json") if not _oddities(_read(path)))


def _configs() -> Path:
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("CLIP towers need open_clip: pip install open_clip_torch")
    return Path(found.origin).parent / "model_configs"


def _read(path: Path) -> dict:
    return json.loads(path.read_text())


def _oddities(config: dict) -> list[str]:
    """Settings that make this something else than a plain ViT."""
    vision = config.get("vision_cfg", {})
    odd = sorted(vision.keys() - _KNOWN)
    for name in ("image_size", "patch_size", "width", "layers"):
        if not isinstance(vision.get(name), int):
            odd.append(f"{name} = {vision.get(name)}")
    if vision.get("pool_type", "tok") not in ("tok", "avg"):
        odd.append(f"pool_type = {vision['pool_type']}")
    return odd
