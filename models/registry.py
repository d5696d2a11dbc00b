"""From a model's name and what is said of it to its config: the one place where that is checked. No torch."""

from __future__ import annotations

from math import prod
from typing import Any, get_args

from models import plans
from models.config import Activation, ClipConfig, ModelConfig, Options, TubeConfig, suggest
from models.presets import MODELS, Family, Preset
from models.towers import tower
from pipeline.plan import Filter, Plan

# Which options a family has, besides those of every model; what another lacks, in words.
_HAS: dict[Family, set[str]] = {
    "tubevit": {"tubes", "positions", "init"},
    "vivit": {"tubes", "init"},
    "clip": {"clip"},
    "gated": {"clip", "adapter_layers", "tubes", "positions", "init"},
    "grafted": {"clip", "tubes", "positions", "tubes_from", "frozen_layers"},
    "dualpath": {"clip"},
    "aim": {"clip"},
    "st_adapter": {"clip"},
}
_LACKS = {
    "clip": "no CLIP tower; leave it out, or take a gated model",
    "adapter_layers": "no adapters whose places could be chosen; leave it out",
    "tubes": "no tubes of its own; leave it out",
    "positions": "no positions of tubes; leave it out",
    "init": "weights from elsewhere (model.clip.pretrained); leave it out",
    "tubes_from": "no grafted tubes; leave it out",
    "frozen_layers": "no choice of frozen layers; leave it out",
}


def preset(name: str) -> Preset:
    """The preset of that name, or ValueError."""
    if name not in MODELS:
        raise ValueError(f"model.name = {name!r}: no such model; {suggest(name, MODELS)}")
    return MODELS[name]


def resolve(name: str, options: Options) -> ModelConfig:
    """Check settings against each other and fill in the preset's defaults. ValueError names what is wrong."""
    kind = preset(name)
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if key not in Options.__annotations__:
            raise ValueError(
                f"model.{key} = {value!r}: no such setting; {suggest(key, Options.__annotations__)}"
            )
        if key in _LACKS and key not in _HAS[kind.family] and (key, value) != ("positions", "sincos"):
            raise ValueError(f"model.{key} = {value!r}: {name} has {_LACKS[key]}")
    _check_clips(given)
    _check_heads(given)
    if kind.arch is not None:
        given["clip"] = _clip(kind, given.get("clip"))
        depth = tower(given["clip"].arch).layers
        if kind.family == "gated":
            given["adapter_layers"] = _adapter_layers(given.get("adapter_layers"), depth)
        if kind.family == "grafted":
            given["frozen_layers"] = _frozen_layers(given.get("frozen_layers"), depth)
    config = ModelConfig(**given, name=name)
    _check_tubes(config)
    return config


def plan(config: ModelConfig) -> Plan:
    """The pixels that the model wants."""
    kind = preset(config.name)
    canvas = plans.canvas(config.frames, config.size, config.filter)
    if config.clip is None:
        return plans.tubes(canvas, tubes(config))
    patch, every = tower(config.clip.arch).patch, config.clip.every or kind.every
    if kind.family == "dualpath":
        return plans.dualpath(canvas, patch)
    if kind.tubes:
        return plans.gated(canvas, tubes(config), patch, every)
    return plans.clip(canvas, patch, every)


def image_plan(config: ModelConfig) -> Plan | None:
    """What it wants of a still image; None if it takes none. DualPath has no framesets of one."""
    return None if preset(config.name).family == "dualpath" else plan(config).image()


def tubes(config: ModelConfig) -> tuple[TubeConfig, ...]:
    """The tubes of the model's own transformer: those asked for, or the preset's."""
    return config.tubes or preset(config.name).tubes


def width(config: ModelConfig) -> int:
    """The channels of a token that is made of tubes."""
    kind = preset(config.name)
    if kind.family == "grafted" and config.clip is not None:
        return tower(config.clip.arch).width
    return kind.dim


def activation(config: ModelConfig) -> Activation:
    """That of the weights a model starts from; else ViViT's is JAX's, and TubeViT's the exact one."""
    if config.init is not None:
        return "gelu" if config.init.arch is None else tower(config.init.arch).activation
    return "gelu_tanh" if preset(config.name).family == "vivit" else "gelu"


def _check_clips(given: dict[str, Any]) -> None:
    frames, size, filter = given.get("frames", 32), given.get("size", (224, 224)), given.get("filter", "area")
    if type(frames) is not int or frames < 1:
        raise ValueError(f"frames = {frames!r}: must be a positive integer")
    if not isinstance(size, tuple) or len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
        raise ValueError(f"size = {size!r}: must be (height, width) in pixels, for example (224, 224)")
    if filter not in get_args(Filter):
        raise ValueError(f"filter = {filter!r}: {suggest(str(filter), get_args(Filter))}")


def _check_heads(given: dict[str, Any]) -> None:
    classes = given.get("num_classes")
    counts = classes if isinstance(classes, dict) else {} if classes is None else {"": classes}
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            field = f"model.num_classes.{name}" if name else "model.num_classes"
            raise ValueError(f"{field} = {count!r}: must be a positive integer, or None for no head")
        if not isinstance(name, str) or (name and not name.isidentifier()):
            raise ValueError(
                f"model.num_classes: {name!r}: a dataset's name must be a word of letters and digits"
            )
    if isinstance(classes, dict) and not classes:
        raise ValueError("model.num_classes = {}: name at least one dataset, or give None for no head")
    if given.get("probe") and not counts:
        raise ValueError("model.probe = True: a probe trains a head; set model.num_classes")


def _check_tubes(config: ModelConfig) -> None:
    """Whether the model's own transformer can take its tubes. ValueError."""
    kind = preset(config.name)
    asked, wanted = config.tubes, tubes(config)
    if asked == ():
        raise ValueError("model.tubes = (): name at least one, or leave it out for the model's own")
    if kind.family == "vivit" and (len(wanted) != 1 or prod(wanted[0].space_to_depth) > 1):
        raise ValueError(f"model.tubes = {asked!r}: a ViViT has one kind of tubelet, without space_to_depth")
    for name, tube in zip(plans.tube_names(wanted), wanted, strict=True):
        parts = prod(tube.space_to_depth)
        if kind.interpolated and parts > 1:
            raise ValueError(
                f"model.tubes: {name}: {config.name} resizes one kernel and has no space_to_depth"
            )
        if width(config) % parts:
            raise ValueError(
                f"model.tubes: {name}: space_to_depth {tube.space_to_depth} does not divide "
                f"the {width(config)} channels of {config.name}"
            )
    if config.init is not None and config.init.arch is not None:
        try:
            source = tower(config.init.arch)
        except ValueError as error:
            raise ValueError(str(error).replace("model.clip.arch", "model.init.arch")) from None
        if (source.width, source.layers) != (kind.dim, kind.layers):
            raise ValueError(
                f"model.init.arch = {config.init.arch!r}: {source.layers} layers of {source.width} channels, "
                f"but {config.name} has {kind.layers} of {kind.dim}"
            )


def _clip(kind: Preset, clip: ClipConfig | None) -> ClipConfig:
    clip = clip or ClipConfig()
    if kind.family == "dualpath" and clip.every is not None:
        raise ValueError(
            f"model.clip.every = {clip.every}: DualPath takes {plans.KEY_FRAMES} key frames; leave it out"
        )
    every = None if kind.family == "dualpath" else clip.every or kind.every
    return clip.model_copy(update={"arch": clip.arch or kind.arch, "every": every})


def _adapter_layers(layers: tuple[int, ...] | None, depth: int) -> tuple[int, ...]:
    """Blocks that an adapter stands before. Default: from a third of the depth on, every sixth of it.

    So 4, 6, 8, 10 of 12 and 8, 12, 16, 20 of 24. The first third builds no graph; what an adapter adds
    still passes through at least one frozen block, which carries it to the class token.
    """
    if layers is None:
        return tuple(range(depth // 3, depth, max(1, depth // 6)))
    wrong = [layer for layer in layers if type(layer) is not int or not 0 <= layer < depth]
    if wrong or not layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"model.adapter_layers = {layers!r}: must be different blocks out of 0..{depth - 1}, at least one"
        )
    return tuple(sorted(layers))


def _frozen_layers(layers: int | None, depth: int) -> int:
    """All but a quarter of the depth, as in the paper's Table 6: 24 of 32."""
    if layers is None:
        return depth - max(1, depth // 4)
    if type(layers) is not int or not 1 <= layers < depth:
        raise ValueError(f"model.frozen_layers = {layers!r}: must be of 1..{depth - 1}; the others train")
    return layers
