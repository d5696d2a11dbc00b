"""Small pictures of some rows of a run's output, for its report: drawn by a worker, or left out.

Of shards what the tubes hold is painted, on gray; of embeddings a frame of each clip is read again.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image

from jobs.spec import EmbedSpec, ShardSpec
from pipeline.attempts import bounded
from pipeline.commits import Run
from pipeline.corpus import open_input
from pipeline.errors import MediaError, SpecError
from pipeline.limits import Limits
from pipeline.plan import CHANNELS, Canvas, Plan, Tube
from pipeline.sampling import Sampling
from pipeline.shards import ShardReader, shard_files, tube_arrays
from pipeline.storage import Location, locate
from pipeline.tables import IMAGE_SUFFIXES, suffix_of
from pipeline.video import Pixels, read_clips

MOST = 12
SIDE_PX = 160  # the longer one
QUALITY = 70
SECONDS = 20.0  # for reading one of them
ALL_SECONDS = 60.0
GRAY = 128  # of what no tube holds


@dataclass(frozen=True)
class Thumbnail:
    """One row of the output; uint8 RGB pixels as a JPEG."""

    uri: str
    start_seconds: float
    labels: tuple[str, ...]
    jpeg: bytes


@dataclass(frozen=True)
class Row:
    """Where a row lies: in a shard, or in a file of embeddings."""

    file: Location
    number: int


def thumbnails(spec: ShardSpec | EmbedSpec, run: Run, root: str, sampling: Sampling) -> list[Thumbnail]:
    """Of rows evenly spread over the output, MOST at most; fewer where files are gone, none without Ray."""
    if not ray.is_initialized():
        return []
    limits = spec.limits.model_copy(update={"timeout_seconds": SECONDS})
    try:
        drawing = ray.remote(num_cpus=0, max_retries=0)(draw).remote(
            _spread(spec, run), root, sampling, limits
        )
        return ray.get(drawing, timeout=ALL_SECONDS)
    except (ray.exceptions.RayError, SpecError, OSError, pa.ArrowException):
        return []  # a report without pictures is one all the same


def _spread(spec: ShardSpec | EmbedSpec, run: Run) -> list[Row]:
    files: list[tuple[Location, int]]
    if isinstance(spec, EmbedSpec) and spec.input.shards is not None:
        sets = shard_files(locate(spec.input.shards, "input.shards")).values()
        files = [(file.location, file.rows or 0) for shards in sets for file in shards]
    else:
        manifest = run.manifest() or {"files": []}
        listed = [file for file in manifest["files"] if not file["path"].startswith("failures/")]
        files = [(run.place / file["path"], file["rows"]) for file in listed]
    ends = np.cumsum([rows for _, rows in files])
    total = int(ends[-1]) if files else 0
    chosen = np.unique(((np.arange(MOST) + 0.5) * total / MOST).astype(np.int64))[:total]
    which = np.searchsorted(ends, chosen, side="right")
    return [
        Row(files[i][0], int(row - (ends[i] - files[i][1]))) for i, row in zip(which, chosen, strict=True)
    ]


def draw(rows: Sequence[Row], root: str, sampling: Sampling, limits: Limits) -> list[Thumbnail]:
    """What a worker does. A file that crashes or hangs its decoder ends the worker, and nothing else."""
    found = []
    for row in rows:
        try:
            if row.file.path.endswith(".arrow"):
                fields, pixels_HWC = _stored(row)
            else:
                fields = _fields(row)
                with bounded(limits.timeout_seconds):
                    pixels_HWC = _frame(fields, root, sampling, limits)
        except (
            Exception
        ):  # whatever a file makes the libraries do: it has been decoded once, so it has changed
            continue
        jpeg = _jpeg(pixels_HWC)
        labels = tuple(fields["labels"] or ())
        found.append(Thumbnail(fields["uri"], fields["start_seconds"], labels, jpeg))
    return found


def _stored(row: Row) -> tuple[dict[str, Any], np.ndarray]:
    reader = ShardReader(row.file)
    batch = reader.rows(row.number, row.number + 1)
    fields = batch.select(["uri", "start_seconds", "labels"]).to_pylist()[0]
    tubes = {name: tube[0] for name, tube in tube_arrays(batch, reader.plan).items()}
    return fields, paint(tubes, reader.plan)


def paint(tubes: Mapping[str, np.ndarray], plan: Plan) -> np.ndarray:
    """The image of a canvas of which the tubes hold the most.

    Args:
        tubes: {name: uint8 (n_t, n_h, n_w, kT, kH, kW, 3)} of one clip, as `cut` gives them.

    Returns:
        uint8 (H, W, 3), gray where there is no tube.
    """
    best, most = np.empty(0), -1
    for canvas in plan.canvases:
        pixels = np.full((*canvas.shape, CHANNELS), GRAY, np.uint8)
        held = np.zeros(canvas.shape, bool)
        for tube in plan.tubes:
            if tube.canvas != canvas:
                continue
            places = [np.add.outer(o, np.arange(k)) for o, k in zip(tube.origins, tube.kernel, strict=True)]
            for (a, b, c), block in zip(
                np.ndindex(tube.grid), tubes[tube.name].reshape(-1, *tube.kernel, CHANNELS), strict=True
            ):
                index = np.ix_(places[0][a], places[1][b], places[2][c])
                pixels[index], held[index] = block, True
        counts = held.sum(axis=(1, 2))
        if counts.max() > most:
            best, most = pixels[counts.argmax()], int(counts.max())
    return best


def _fields(row: Row) -> dict[str, Any]:
    """Of a row of embeddings; only its row group is read."""
    with row.file.filesystem.open_input_file(row.file.path) as source:
        file, left = pq.ParquetFile(source), row.number
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if left < rows:
                table = file.read_row_group(group, columns=["uri", "start_seconds", "end_seconds", "labels"])
                return table.slice(left, 1).to_pylist()[0]
            left -= rows
    raise OSError(f"{row.file.path} has no row {row.number}")


def _frame(fields: dict[str, Any], root: str, sampling: Sampling, limits: Limits) -> np.ndarray:
    """uint8 (H, W, 3): the middle frame of a clip, cropped as the job's canvas is."""
    scale = SIDE_PX / max(sampling.height_px, sampling.width_px)
    height, width = (max(2, round(side * scale)) for side in (sampling.height_px, sampling.width_px))
    canvas = Canvas(frames=1, height_px=height, width_px=width)
    size = (1, height, width)
    plan = Plan(tubes=(Tube(name="whole", kernel=size, stride=size, canvas=canvas),))
    single = Sampling(frames=1, stride=1, clips=1, height_px=height, width_px=width)
    image = suffix_of(fields["uri"]) in IMAGE_SUFFIXES
    span = (None, None) if image else (fields["start_seconds"], fields["end_seconds"])
    for view in read_clips(open_input(root, fields["uri"]), single, plan, span, limits=limits):
        if isinstance(view, Pixels):
            return view.frames[canvas][0]
        raise view.error
    raise MediaError("too_short", "it has no frame there")


def _jpeg(pixels_HWC: np.ndarray) -> bytes:
    picture = Image.fromarray(pixels_HWC)
    picture.thumbnail((SIDE_PX, SIDE_PX))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
