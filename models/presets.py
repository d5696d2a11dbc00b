"""Every model there is, by name. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models import plans
from models.config import TubeConfig, Variant

Family = Literal["tubevit", "vivit", "clip", "gated", "grafted", "dualpath", "aim", "st_adapter"]


@dataclass(frozen=True)
class Preset:
    """A named model.

    dim, layers, heads: of its own transformer (MLP 4 * dim), or of the TubeViT beside CLIP.
    arch, every: its default CLIP tower, and the distance of its key frames.
    tubes: what its own transformer looks at. variant: of ViViT.
    interpolated: whether all tubes' kernels are resized from one.
    """

    family: Family
    doc: str
    dim: int = 0
    layers: int = 0
    heads: int = 0
    arch: str | None = None
    every: int = 4
    tubes: tuple[TubeConfig, ...] = ()
    variant: Variant = "joint"
    interpolated: bool = False


# Nobody's: what learns in minutes on a CPU, and what still does in an hour, of ViT-Ti's width.
NANO, MICRO = (96, 4, 4), (192, 4, 3)
TINY, SMALL, BASE, LARGE, HUGE = (192, 12, 3), (384, 12, 6), (768, 12, 12), (1024, 24, 16), (1280, 32, 16)
FOUR, DEEP, CORE, PAIRS = plans.TUBEVIT, plans.TUBEVIT_DEEP, plans.TUBEVIT_CORE, plans.VIVIT
CLOSE = plans.TUBEVIT_CLOSE

MODELS = {
    "tubevit-nano": Preset("tubevit", "TubeViT of 4 layers, to be trained on a CPU", *NANO, tubes=FOUR),
    "tubevit-micro": Preset("tubevit", "TubeViT of 4 layers for small pictures, 64x64", *MICRO, tubes=CLOSE),
    "tubevit-tiny": Preset("tubevit", "TubeViT of ViT-Ti width", *TINY, tubes=FOUR),
    "tubevit-tiny-s2d": Preset("tubevit", "TubeViT-Ti, larger tubes by space-to-depth", *TINY, tubes=DEEP),
    "tubevit-small": Preset("tubevit", "TubeViT of ViT-S width", *SMALL, tubes=FOUR),
    "tubevit-b16": Preset("tubevit", "TubeViT-B, independent kernels", *BASE, tubes=FOUR),
    "tubevit-l16": Preset("tubevit", "TubeViT-L, independent kernels", *LARGE, tubes=FOUR),
    "tubevit-h16": Preset("tubevit", "TubeViT-H, independent kernels", *HUGE, tubes=FOUR),
    "tubevit-b16-s2d": Preset("tubevit", "TubeViT-B, larger tubes by space-to-depth", *BASE, tubes=DEEP),
    "tubevit-l16-s2d": Preset("tubevit", "TubeViT-L, larger tubes by space-to-depth", *LARGE, tubes=DEEP),
    "tubevit-h16-s2d": Preset("tubevit", "TubeViT-H, larger tubes by space-to-depth", *HUGE, tubes=DEEP),
    "tubevit-b16-core": Preset("tubevit", "TubeViT-B, the two core tubes", *BASE, tubes=CORE),
    "tubevit-b16-interpolated": Preset(
        "tubevit", "TubeViT-B, all kernels resized from one", *BASE, tubes=FOUR, interpolated=True
    ),
    "vivit-nano": Preset("vivit", "ViViT of 4 layers, to be trained on a CPU", *NANO, tubes=PAIRS),
    "vivit-tiny": Preset("vivit", "ViViT-Ti model 1: joint space-time attention", *TINY, tubes=PAIRS),
    "vivit-tiny-fe": Preset(
        "vivit", "ViViT-Ti model 2: factorised encoder", *TINY, tubes=PAIRS, variant="factorised_encoder"
    ),
    "vivit-tiny-fsa": Preset(
        "vivit", "ViViT-Ti model 3: factorised self-attention", *TINY, tubes=PAIRS,
        variant="factorised_self_attention",
    ),
    "vivit-tiny-fdp": Preset(
        "vivit", "ViViT-Ti model 4: factorised dot-product", 192, 12, 4, tubes=PAIRS,
        variant="factorised_dot_product",
    ),
    "vivit-b16x2": Preset("vivit", "ViViT-B model 1: joint space-time attention", *BASE, tubes=PAIRS),
    "vivit-b16x2-fe": Preset(
        "vivit", "ViViT-B model 2: factorised encoder", *BASE, tubes=PAIRS, variant="factorised_encoder"
    ),
    "vivit-b16x2-fsa": Preset(
        "vivit", "ViViT-B model 3: factorised self-attention", *BASE, tubes=PAIRS,
        variant="factorised_self_attention",
    ),
    "vivit-b16x2-fdp": Preset(
        "vivit", "ViViT-B model 4: factorised dot-product", *BASE, tubes=PAIRS,
        variant="factorised_dot_product",
    ),
    "vivit-b16x2-mean": Preset(
        "vivit", "ViViT-B baseline: spatial encoder, mean over time", *BASE, tubes=PAIRS, variant="frame_mean"
    ),
    "vivit-l16x2": Preset("vivit", "ViViT-L model 1: joint space-time attention", *LARGE, tubes=PAIRS),
    "vivit-l16x2-fe": Preset(
        "vivit", "ViViT-L model 2: factorised encoder", *LARGE, tubes=PAIRS, variant="factorised_encoder"
    ),
    "clip": Preset("clip", "frozen CLIP image tower on key frames, mean of frames", arch="ViT-B-16"),
    "gated-nano": Preset(
        "gated", "frozen CLIP + TubeViT of 4 layers, for a CPU", *NANO, "ViT-B-16", tubes=FOUR
    ),
    "gated-tiny": Preset("gated", "frozen CLIP + TubeViT-Ti, gated", *TINY, "ViT-B-16", tubes=FOUR),
    "gated-small": Preset("gated", "frozen CLIP + TubeViT-S, gated", *SMALL, "ViT-B-16", tubes=FOUR),
    "gated-b16": Preset("gated", "frozen CLIP B/16 + TubeViT-B, gated", *BASE, "ViT-B-16", tubes=FOUR),
    "gated-l14": Preset("gated", "frozen CLIP L/14 + TubeViT-L, gated", *LARGE, "ViT-L-14", tubes=FOUR),
    "grafted-b16": Preset(
        "grafted", "CLIP B/16 + the tubes of a TubeViT-Ti, gated in its sequence", arch="ViT-B-16", every=32,
        tubes=plans.GRAFTED,
    ),
    "grafted-l14": Preset(
        "grafted", "CLIP L/14 + tubes of width 256, gated in its sequence", arch="ViT-L-14", every=32,
        tubes=plans.GRAFTED,
    ),
    "grafted-h14": Preset(
        "grafted", "CLIP H/14 + tubes of width 320, gated in its sequence", arch="ViT-H-14", every=32,
        tubes=plans.GRAFTED,
    ),
    "dualpath-b16": Preset("dualpath", "frozen CLIP B/16, spatial and temporal adapters", arch="ViT-B-16"),
    "dualpath-l14": Preset("dualpath", "frozen CLIP L/14, spatial and temporal adapters", arch="ViT-L-14"),
    "aim-b16": Preset("aim", "frozen CLIP B/16, adapters, its attention again over time", arch="ViT-B-16"),
    "aim-l14": Preset("aim", "frozen CLIP L/14, adapters, its attention again over time", arch="ViT-L-14"),
    "st-adapter-b16": Preset("st_adapter", "frozen CLIP B/16, convolving adapters", arch="ViT-B-16"),
    "st-adapter-l14": Preset("st_adapter", "frozen CLIP L/14, convolving adapters", arch="ViT-L-14"),
}  # fmt: skip
