"""Checkpoints of our own: a folder with model.safetensors and config.json. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import registry
from models.config import ClipConfig, InitConfig, ModelConfig
from models.model import Model
from models.towers import is_file
from pipeline.plan import Frozen

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
HEAD = "head."


class Stored(Frozen):
    """config.json: how the model was made, the plan it was made for, and what its classes are called.

    classes: of each head, in the order of its logits; a single head's is the dataset that it was trained on.
    """

    format: int = 1
    model: ModelConfig
    plan_digest: str
    classes: dict[str, tuple[str, ...]] = Field(default_factory=dict)


def save(
    model: Model,
    folder: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
    classes: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Write all weights, frozen ones included, and the config of a model from `models.create`.

    state: what to write in place of the model's own, which may be spread over several processes.
    """
    if model.config is None:
        raise ValueError("only a model made by models.create can be saved: this one has no config")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if state is None else state
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(whole, folder / WEIGHTS)
    stored = Stored(model=model.config, plan_digest=model.plan.digest, classes=dict(classes or {}))
    (folder / CONFIG).write_text(stored.model_dump_json(indent=2) + "\n")


def stored_config(folder: str | Path, field: str = "model.checkpoint") -> ModelConfig:
    """The config a checkpoint was saved with. FileNotFoundError or ValueError in one line."""
    return stored(folder, field).model


def stored(folder: str | Path, field: str = "model.checkpoint") -> Stored:
    """All of a checkpoint's config.json. FileNotFoundError or ValueError in one line."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{field} = {str(folder)!r}: no {CONFIG} there; give a saved folder")
    try:
        return Stored.model_validate_json(path.read_text())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{field} = {str(folder)!r}: bad {CONFIG}: {where}: {first['msg']}") from None


def agree(config: ModelConfig, folder: str | Path) -> ModelConfig:
    """`config`, with where the checkpoint's weights came from and, if it has none, its `num_classes`.

    ValueError if their structures differ. Frames, size, filter and key frames may, where no weight depends on
    them.
    """
    there = stored_config(folder)
    ours, theirs = _structure(config), _structure(there)
    for field in ours | theirs:
        if ours.get(field) != theirs.get(field):
            raise ValueError(
                f"model.{field} = {ours.get(field)!r}: checkpoint {str(folder)!r} was made with "
                f"{theirs.get(field)!r}"
            )
    if config.clip is not None and there.clip is not None:
        clip = config.clip.model_copy(update={"pretrained": there.clip.pretrained})
        config = config.model_copy(update={"clip": clip})
    config = config.model_copy(update={"init": there.init, "tubes_from": there.tubes_from})
    if config.num_classes is None:
        config = config.model_copy(update={"num_classes": there.num_classes})
    return config


def _structure(config: ModelConfig) -> dict[str, Any]:
    """The settings that weights depend on."""
    fields: dict[str, Any] = {"name": config.name}
    family, clip = registry.preset(config.name).family, config.clip
    if clip is not None and not is_file(clip.arch):  # a file may have moved; the shapes of weights tell
        fields["clip.arch"] = clip.arch
    for field in ("adapter_layers", "tubes", "positions", "frozen_layers"):
        fields[field] = getattr(config, field)
    if family == "vivit":  # a learned position for each place
        fields |= {"frames": config.frames, "size": config.size}
    if family == "aim" and clip is not None:  # and for each key frame
        fields |= {"frames": config.frames, "clip.every": clip.every}
    return fields


def load(model: Model, folder: str | Path) -> None:
    """Fill `model` from a saved folder, strictly; only a head for other classes stays as it is."""
    state = _read(folder, "model.checkpoint")
    expected = model.state_dict()
    if _drop_foreign_head(expected, state):
        log.warning("the head of %s is for other classes: a new one starts from random weights", folder)
    fit(expected, state, f"model.checkpoint = {str(folder)!r}")
    model.load_state_dict(state, strict=False)


def tubes(folder: str | Path, field: str) -> dict[str, Tensor]:
    """The 3-D tubes of a saved TubeViT, or of one beside CLIP: kernels and biases, in its width."""
    config = stored_config(folder, field)
    prefix = "trunk.tokenizer."
    state = {
        name.removeprefix(prefix): x for name, x in _read(folder, field).items() if name.startswith(prefix)
    }
    if not state or "weight.shared" in state:
        raise ValueError(f"{field} = {str(folder)!r}: {config.name} has no tubes to carry; give a TubeViT")
    return {name: x for name, x in state.items() if not name.split(".")[-1].startswith("tube_1x")}


def check(model: Model, folder: str | Path) -> None:
    """Whether `load` would succeed, from the file's header alone; `model` may be on the meta device."""
    held = header(_file(folder), f"model.checkpoint = {str(folder)!r}")
    expected = model.state_dict()
    _drop_foreign_head(expected, held)
    fit(expected, held, f"model.checkpoint = {str(folder)!r}")


def fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """ValueError naming the keys (at most six) that are missing, unexpected or of another shape."""
    faults = [f"{name} is missing" for name in expected.keys() - state.keys()]
    faults += [f"{name} is unexpected" for name in state.keys() - expected.keys()]
    faults += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        rest = f"; and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise ValueError(f"{source}: does not fit the model: {'; '.join(sorted(faults)[:6])}{rest}")


def header(path: Path, source: str) -> dict[str, Tensor]:
    """Names and shapes of a safetensors file, as tensors on the meta device; the data is not read."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
    except SafetensorError as error:
        raise ValueError(f"{source}: not a safetensors file: {error}") from None


def identity(
    name: str,
    *,
    clip: ClipConfig | None = None,
    init: InitConfig | None = None,
    tubes_from: str | None = None,
    checkpoint: str | Path | None = None,
) -> str:
    """What the weights of a model come from, for a job's fingerprint: changes when a local file does.

    sha256 of a checkpoint folder's weights or of local files, open_clip tags, or "random".
    """
    if checkpoint is not None:
        return f"sha256:{_sha256(_file(checkpoint))}"
    parts = []
    if clip is not None and clip.arch is not None and is_file(clip.arch):
        parts.append(f"arch:{_sha256(Path(clip.arch))}")
    if clip is not None and clip.pretrained is not None:
        parts.append(_origin(clip.pretrained, clip.arch or registry.preset(name).arch))
    if init is not None:
        parts.append(_origin(init.weights, init.arch))
    if tubes_from is not None:
        parts.append(f"sha256:{_sha256(_file(tubes_from, 'model.tubes_from'))}")
    return " ".join(parts) or "random"


def _origin(weights: str, arch: str | None) -> str:
    """Of a local file, or an open_clip tag."""
    path = Path(weights)
    return f"sha256:{_sha256(path)}" if path.is_file() else f"open_clip:{arch}/{weights}"


def _file(folder: str | Path, field: str = "model.checkpoint") -> Path:
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{field} = {str(folder)!r}: no {WEIGHTS} there; give a saved folder")
    return path


def _read(folder: str | Path, field: str) -> dict[str, Tensor]:
    try:
        return load_file(_file(folder, field))
    except SafetensorError as error:
        raise ValueError(f"{field} = {str(folder)!r}: unreadable {WEIGHTS}: {error}") from None


def _drop_foreign_head(expected: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Take the head out of both if it is absent from the state or for another number of classes."""
    ours = {name for name in expected if name.startswith(HEAD)}
    new = {name for name in ours if name not in state or state[name].shape != expected[name].shape}
    for name in new:
        del expected[name]
    for name in [name for name in state if name.startswith(HEAD) and (name in new or name not in ours)]:
        del state[name]
    return bool(new)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
