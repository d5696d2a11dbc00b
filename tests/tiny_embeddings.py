"""Output folders of embed jobs, without the jobs: embeddings that a test has made up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import jobs
from pipeline.shards import META


def write(
    folder: Path,
    vectors: np.ndarray,
    *,
    views: int = 1,
    parts: int = 2,
    model: Mapping[str, Any] | None = None,
    **columns: Sequence[Any],
) -> str:
    """`vectors` (videos x views, channels) in several files; `columns` are of videos. The folder's name.

    A video's views do not follow each other: first come the first views of all videos.
    """
    videos = len(vectors) // views
    rows = [(video, view) for view in range(views) for video in range(videos)]
    uris = columns.pop("uri", [f"v{k}.mp4" for k in range(videos)])
    table: dict[str, Any] = {
        "clip_id": [f"{uris[video]}@{video}-#0-9/{view}" for video, view in rows],
        "uri": [uris[video] for video, _ in rows],
        "view_index": [view for _, view in rows],
        **{name: [column[video] for video, _ in rows] for name, column in columns.items()},
    }
    arrays = [pa.array(table.get(field.name, [None] * len(rows)), field.type) for field in META]
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    arrays.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
    whole = pa.table(arrays, schema=META.append(pa.field("embedding", arrays[-1].type)))
    (folder / "embeddings").mkdir(parents=True, exist_ok=True)
    files = []
    for number, some in enumerate(np.array_split(np.arange(len(rows)), parts)):
        path = folder / "embeddings" / f"part-{number}.parquet"
        pq.write_table(whole.take(pa.array(some)), path, compression="zstd")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = path.stat().st_size
        files.append({"path": f"embeddings/{path.name}", "rows": len(some), "bytes": size, "sha256": digest})
    (folder / "manifest.json").write_text(json.dumps({"kind": "embed", "files": files}))
    spec = {
        "version": 1, "kind": "embed", "input": {"path": "/videos"}, "output": {"path": str(folder)},
        "model": {"name": "tubevit-tiny", "checkpoint": "/trained"} if model is None else dict(model),
    }  # fmt: skip
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return str(folder)


def asked(folder: Path, **changed: Any) -> dict[str, Any]:
    """The spec of a probe of the embeddings in `folder`/embedded, for the Python API."""
    return {
        "version": 1, "kind": "probe", "embeddings": str(folder / "embedded"),
        "output": {"path": str(folder / "probe")}, **changed,
    }  # fmt: skip


def clusters(videos: int, classes: int, *, noise: float, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Points near the centre of their class, in turns; the classes' centres are at right angles."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return centres[np.arange(videos) % classes] + noise * rng.normal(size=(videos, dim))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def labels(videos: int, classes: int) -> list[list[str]]:
    return [[f"class {k % classes}"] for k in range(videos)]


def splits(videos: int) -> list[str]:
    """Two thirds are learned from; every class is on both sides if there are not three of them."""
    return ["test" if k % 3 == 2 else "train" for k in range(videos)]


def probed(folder: Path, **changed: Any) -> dict[str, Any]:
    found = jobs.run(asked(folder, **changed))
    assert isinstance(found, dict)
    return found
