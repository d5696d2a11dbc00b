"""What an embed job has made, by video: the views of each are averaged as they are read.

N videos, R views of them (rows of the Parquet files), D channels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import yaml
from torch import Tensor
from torch.nn import functional

from jobs.spec import EmbedSpec, load
from pipeline.errors import SpecError
from pipeline.shards import CARRIED, videos_of
from pipeline.storage import Location, locate

BATCH_ROWS = 1 << 13  # that are read at a time
COLUMNS = ["clip_id", "uri", *CARRIED]


@dataclass(frozen=True)
class Embedded:
    """Videos, and annotated parts of them, that were embedded.

    name: what a probe's spec calls them. made: the job that made them.
    digest: of the manifest, so of all that is listed there. dim: channels.
    known: a row for each video: COLUMNS of its first view, and `number`: its place in `video_of_row`.
    video_of_row: int64 (R,), in the order of the manifest's files.
    """

    name: str
    folder: Location
    files: tuple[str, ...]
    made: EmbedSpec
    digest: str
    dim: int
    known: pa.Table
    video_of_row: np.ndarray

    def __len__(self) -> int:
        return self.known.num_rows

    def vectors(self) -> Tensor:
        """float32 (N, D) of unit length, by row of `known`: the mean of a video's views, each of unit length.

        Takes 4 N D bytes, and a batch of rows: what is not in `known` is read past.
        """
        place_of = np.full(int(self.video_of_row.max()) + 1, -1)
        place_of[self.known["number"].to_numpy()] = np.arange(len(self))
        places = torch.from_numpy(place_of[self.video_of_row])
        means_ND = torch.zeros(len(self), self.dim)
        row = 0
        for file in self.files:
            with _opened(self.folder, file, self.name) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS, columns=["embedding"]):
                    views_RD = torch.from_dlpack(batch["embedding"].flatten()).view(-1, self.dim)
                    here = places[row : row + len(views_RD)]
                    row += len(views_RD)
                    wanted = here >= 0
                    means_ND.index_add_(0, here[wanted], functional.normalize(views_RD[wanted], dim=1))
        return functional.normalize(means_ND, dim=1, out=means_ND)


def open_embedded(folder: str, name: str = "embeddings") -> Embedded:
    """The output of an embed job, with all that is known of its videos but for the embeddings.

    Raises:
        SpecError: there is no such output, or not all of it.
    """
    place = locate(folder, name)
    manifest = _manifest(place, folder, name)
    made = load(yaml.safe_load((place / "spec.yaml").read_bytes()))
    assert isinstance(made, EmbedSpec)
    files = tuple(file["path"] for file in manifest["files"] if file["path"].startswith("embeddings/"))
    tables, dim = [], 0
    for file in files:
        with _opened(place, file, name) as parquet:
            dim = parquet.schema_arrow.field("embedding").type.list_size
            tables.append(parquet.read(columns=COLUMNS).select(COLUMNS))
    if not sum(table.num_rows for table in tables):
        raise SpecError(name, folder, "holds no embeddings; see: tubelet failures DIR")
    rows = pa.concat_tables(tables)
    videos = pc.dictionary_encode(videos_of(rows["clip_id"]).combine_chunks())
    video_of_row = videos.indices.to_numpy().astype(np.int64)
    numbers, first = np.unique(video_of_row, return_index=True)
    known = rows.take(pa.array(first)).append_column("number", pa.array(numbers)).combine_chunks()
    digest = hashlib.sha256((place / "manifest.json").read_bytes()).hexdigest()
    return Embedded(name, place, files, made, digest, dim, known, video_of_row)


def _manifest(place: Location, folder: str, name: str) -> dict[str, Any]:
    if not (place / "manifest.json").exists():
        problem = "there is no manifest.json: name the output folder of a finished job of kind embed"
        raise SpecError(name, folder, problem)
    manifest: dict[str, Any] = json.loads((place / "manifest.json").read_bytes())
    if manifest["kind"] != "embed":
        raise SpecError(name, folder, f"was made by a job of kind {manifest['kind']}; name one of kind embed")
    return manifest


@contextmanager
def _opened(place: Location, file: str, name: str) -> Iterator[pq.ParquetFile]:
    """A part, to be read from here on; SpecError if that cannot be done."""
    try:
        with pq.ParquetFile((place / file).path, filesystem=place.filesystem) as parquet:
            yield parquet
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        problem = f"{file} cannot be read ({reason}); see: tubelet verify DIR"
        raise SpecError(name, place.path, problem) from None
