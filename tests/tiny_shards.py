"""Shard sets of small coloured clips that a model can tell apart, and a training spec for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import models
from models.config import TubeConfig
from pipeline.cut import cut
from pipeline.plan import Plan
from pipeline.sampling import Sampling
from pipeline.shards import shard_schema

TUBES = (TubeConfig(kernel=(2, 4, 4), stride=(2, 4, 4)), TubeConfig(kernel=(1, 4, 4), stride=(2, 4, 4)))
SAMPLING = Sampling(frames=4, height_px=8, width_px=12)
NAME = "tubevit-nano"
COLOURS = ("blue", "green", "red")


def write(
    folder: Path,
    clips: int,
    *,
    still: bool = False,
    seed: int = 0,
    labels: Sequence[Any] = (),
    captions: Sequence[Any] = (),
    videos: int | None = None,
    plan: Plan | None = None,
    sampling: Sampling = SAMPLING,
) -> str:
    """Shards of 8 clips each: noise with more of one colour, which is the label. The folder's name.

    videos: how many they are of, in turns; one for each clip if left out. plan, sampling: other than those of
    the tiny model.
    """
    videos = clips if videos is None else videos
    found = plan or (models.image_plan if still else models.plan)(NAME, frames=4, size=(8, 12), tubes=TUBES)
    assert isinstance(found, Plan)
    schema, rng = shard_schema(found, sampling), np.random.default_rng([seed, still])
    folder.mkdir(parents=True)
    for start in range(0, clips, 8):
        numbers = range(start, min(start + 8, clips))
        columns: dict[str, list[Any]] = {
            "clip_id": [f"{folder.name}{k % videos}.mp4#{k // videos}-9/0" for k in numbers],
            "labels": [labels[k] if labels else [COLOURS[k % videos % 3]] for k in numbers],
            "caption": [captions[k] if captions else None for k in numbers],
            "split": ["out" if k % 4 == 3 else "in" for k in numbers],
            "group": [f"person {k % videos % 4}" for k in numbers],
        }
        pixels = {tube.name: np.empty((len(numbers), *tube.shape), np.uint8) for tube in found.tubes}
        for row, k in enumerate(numbers):
            frames = {}
            for canvas in found.canvases:
                frames[canvas] = rng.integers(0, 156, (canvas.frames, *canvas.frame_size, 3), dtype=np.uint8)
                frames[canvas][..., 2 - k % videos % 3] += 99
            cut(frames, found, {name: x[row] for name, x in pixels.items()})
        arrays = [
            pa.FixedShapeTensorArray.from_numpy_ndarray(pixels[field.name])
            if field.name in pixels
            else pa.array(columns.get(field.name, [None] * len(numbers)), field.type)
            for field in schema
        ]
        with pa.ipc.new_file(folder / f"{start:04d}.arrow", schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return str(folder)


def tower(folder: Path, channels: int) -> str:
    """A config file of a CLIP with tiny towers: of 4-pixel patches, and texts of so many channels."""
    vision = {"image_size": 8, "patch_size": 4, "width": 64, "layers": 2}
    text = {"width": 32, "heads": 2, "layers": 2}
    path = folder / f"tower_{channels}.json"
    path.write_text(json.dumps({"embed_dim": channels, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


def spec(folder: Path, **changed: Any) -> dict[str, Any]:
    """A training job on the shards in `folder`/clips, for the Python API."""
    return {
        "version": 1, "kind": "train", "output": {"path": str(folder / "run")},
        "data": {"clips": {"shards": str(folder / "clips"), "split": "in"}},
        "model": {"name": NAME, "tubes": [tube.model_dump(mode="json") for tube in TUBES]},
        "recipe": {"steps": 12, "batch": 8, "optimizer": {"learning_rate": 3e-3}},
        "checkpoints": {"every_steps": 4}, "strategy": {"deterministic": True}, **changed,
    }  # fmt: skip
