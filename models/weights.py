"""Checkpoints of our own: a folder with model.safetensors and config.json. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import registry
from models.config import ClipConfig, ModelConfig
from models.model import Model
from pipeline.plan import Frozen

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
HEAD = "head."


class Stored(Frozen):
    """config.json: how the model was made, and the plan it was made for."""

    format: int = 1
    model: ModelConfig
    plan_digest: str


def save(model: Model, folder: str | Path) -> None:
    """Write all weights, frozen ones included, and the config of a model from `models.create`."""
    if model.config is None:
        raise ValueError("only a model made by models.create can be saved: this one has no config")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    stored = Stored(model=model.config, plan_digest=model.plan.digest)
    (folder / CONFIG).write_text(stored.model_dump_json(indent=2) + "\n")


def stored_config(folder: str | Path) -> ModelConfig:
    """The config a checkpoint was saved with. FileNotFoundError or ValueError in one line."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"model.checkpoint = {str(folder)!r}: no {CONFIG} there; give a saved folder")
    try:
        return Stored.model_validate_json(path.read_text()).model
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"model.checkpoint = {str(folder)!r}: bad {CONFIG}: {where}: {first['msg']}"
        ) from None


def agree(config: ModelConfig, folder: str | Path) -> ModelConfig:
    """`config`, with the checkpoint's CLIP weights and, if it has none, its `num_classes`.

    ValueError if their structures differ. Frames, size, filter and key frames may: no weight depends on them.
    """
    stored = stored_config(folder)
    for field, wanted, held in (
        ("name", config.name, stored.name),
        ("clip.arch", config.clip and config.clip.arch, stored.clip and stored.clip.arch),
        ("adapter_layers", config.adapter_layers, stored.adapter_layers),
    ):
        if wanted != held:
            raise ValueError(f"model.{field} = {wanted!r}: checkpoint {str(folder)!r} was made with {held!r}")
    if config.clip is not None and stored.clip is not None:
        clip = config.clip.model_copy(update={"pretrained": stored.clip.pretrained})
        config = config.model_copy(update={"clip": clip})
    if config.num_classes is None:
        config = config.model_copy(update={"num_classes": stored.num_classes})
    return config


def load(model: Model, folder: str | Path) -> None:
    """Fill `model` from a saved folder, strictly; only a head for other classes stays as it is."""
    path = _file(folder)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"model.checkpoint = {str(folder)!r}: unreadable {WEIGHTS}: {error}") from None
    expected = model.state_dict()
    if _drop_foreign_head(expected, state):
        log.warning("the head of %s is for other classes: a new one starts from random weights", folder)
    fit(expected, state, f"model.checkpoint = {str(folder)!r}")
    model.load_state_dict(state, strict=False)


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


def identity(name: str, *, clip: ClipConfig | None = None, checkpoint: str | Path | None = None) -> str:
    """What the weights of a model come from, for a job's fingerprint: changes when a local file does.

    sha256 of a checkpoint folder's weights or of a local CLIP file, the open_clip tag, or "random".
    """
    if checkpoint is not None:
        return f"sha256:{_sha256(_file(checkpoint))}"
    if clip is None or clip.pretrained is None:
        return "random"
    path = Path(clip.pretrained)
    if path.is_file():
        return f"sha256:{_sha256(path)}"
    return f"open_clip:{clip.arch or registry.preset(name).arch}/{clip.pretrained}"


def _file(folder: str | Path) -> Path:
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"model.checkpoint = {str(folder)!r}: no {WEIGHTS} there; give a saved folder"
        )
    return path


def _drop_foreign_head(expected: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Take the head out of both if it is absent from the state or for another number of classes."""
    ours = {name for name in expected if name.startswith(HEAD)}
    if all(name in state and state[name].shape == expected[name].shape for name in ours):
        return False
    for name in ours:
        del expected[name]
        state.pop(name, None)
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
