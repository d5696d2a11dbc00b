"""`kind: embed`: every view of a corpus through a model, to Parquet. The only stage that imports torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import models
from jobs.model import Model, in_bfloat16
from jobs.room import Room
from jobs.spec import EmbedSpec
from models.registry import preset
from pipeline.commits import Receipt, Run
from pipeline.corpus import Media
from pipeline.errors import Failure, SpecError, SpecListError
from pipeline.metrics import Metrics
from pipeline.plan import Plan
from pipeline.pools import Pool
from pipeline.rows import Covered
from pipeline.sampling import Sampling
from pipeline.shards import ShardReader, ShardSet, meta_fields, require, shard_files
from pipeline.stages import RECEIPT, Cutting, Decode, unpack, work, worker
from pipeline.storage import locate
from pipeline.units import REDOES

if TYPE_CHECKING:
    from models.model import Model as Module

# Units of shard rows.
_ITEM = pa.struct(
    [("uri", pa.string()), ("first_row", pa.int64()), ("stop_row", pa.int64()), *REDOES.items()]
)
STORED = pa.schema([("media", pa.string()), ("clips", pa.int64()), ("items", pa.list_(_ITEM))])


@dataclass(frozen=True)
class Encoder:
    """A model to construct on a worker: its settings, and the clips it is for.

    blank: with random weights in place of all that it has; it is as fast.
    """

    model: Model
    sampling: Sampling
    blank: bool = False

    def create(self) -> Module:
        """The model, on the CPU."""
        wanted, options = self.model, self.model.options(self.sampling)
        if self.blank:
            return models.blank(wanted.name, **options)
        return models.create(wanted.name, checkpoint=wanted.saved, seed=wanted.seed, **options)

    def check(self) -> None:
        """Refuse, before anything starts, what `create` would refuse on every worker."""
        options = self.model.options(self.sampling)
        try:
            models.check(self.model.name, checkpoint=self.model.saved, **options)
        except (ValueError, OSError) as error:
            raise SpecListError([str(error)]) from None

    def fetch(self) -> None:
        """Download weights here, once: a failure is then one line, not one on every worker."""
        if self.model.checkpoint is None:
            try:
                models.fetch(self.model.name, **self.model.options(self.sampling))
            except ValueError as error:
                raise SpecListError([str(error)]) from None

    def warnings(self) -> list[str]:
        """What a user must know of weights that mean nothing."""
        wanted, kind = self.model, preset(self.model.name)
        if wanted.checkpoint is not None:
            return []
        lines = []
        if kind.arch is not None and (wanted.clip is None or wanted.clip.pretrained is None):
            lines.append(
                f"WARNING: the CLIP tower is randomly initialised (seed {wanted.seed}), its embeddings mean "
                "nothing: set model.clip.pretrained to an open_clip tag or a local checkpoint"
            )
        if kind.arch is None and wanted.init is None:
            lines.append(
                f"WARNING: {wanted.name} is randomly initialised (seed {wanted.seed}), its embeddings mean "
                "nothing: set model.checkpoint"
            )
        elif kind.arch is None:
            lines.append(
                f"WARNING: {wanted.name} has image weights and was never trained on video: "
                "set model.checkpoint"
            )
        elif kind.family != "clip":
            lines.append(
                f"note: what {wanted.name} adds to CLIP is untrained (seed {wanted.seed}) and its gates or "
                "adapters closed: set model.checkpoint for trained ones"
            )
        return lines


class Embed:
    """Stage: decoded units, or ranges of shards -> committed embeddings.

    A batch is formed inside its unit, in plan order, so a view's neighbours do not depend on timing.
    """

    def __init__(self, run: Run, encoder: Encoder, threads: int, root: str, gpus: float = 0.0):
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._run, self._settings, self._root, self._gpus = run, encoder.model, root, gpus
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._batch_views = encoder.model.batch_views
        self._half = in_bfloat16(encoder.model.precision, self._device.type)
        self._model = encoder.create()
        self._model.to(self._device)
        image_plan = self._model.image_plan
        self._plans: dict[Media, Plan] = {"video": self._model.plan}
        if image_plan is not None:
            self._plans["image"] = image_plan
        self._metrics = Metrics(run, "embed")
        self._idle_since = time.perf_counter()

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return self._device.type

    def plan(self, media: Media) -> Plan:
        """What its model wants of a view."""
        return self._plans[media]

    def __call__(self, units: pa.Table) -> pa.Table:
        begun_at, waited_seconds = time.time(), time.perf_counter() - self._idle_since
        batches: Iterable[pa.RecordBatch]
        if "views" in units.column_names:
            receipt, media, batches, failures = unpack(units)
        else:
            row = units.to_pylist()[0]
            receipt, media, failures = Receipt(row["unit"], inputs=len(row["items"])), row["media"], []
            batches = self._stored(row["items"], media, receipt)
        receipt.wait_seconds += waited_seconds
        table = self.table(batches, media, receipt, failures)
        receipt.clips = 0 if table is None else table.num_rows
        receipt.batch_views = self._batch_views
        if table is not None and table.num_rows:
            path = f"units/{self._run.name(receipt.unit)}.parquet"
            receipt.files.append(self._run.write_table(path, table))
        receipt.gpu_seconds = receipt.model_seconds * self._gpus
        receipt.work.append(work("embed", begun_at))
        self._run.commit(receipt, failures)
        self._metrics.committed(receipt, failures)
        self._metrics.worked(receipt.work[-1])
        self._idle_since = time.perf_counter()
        return pa.table([[receipt.to_json()]], schema=RECEIPT)

    def table(
        self, batches: Iterable[pa.RecordBatch], media: Media, receipt: Receipt, failures: list[Failure]
    ) -> pa.Table | None:
        """Embed batches of views: their metadata and an `embedding` column."""
        parts = []
        for batch in batches:
            begun = time.perf_counter()
            embeddings = self.embed(batch, media)
            receipt.model_seconds += time.perf_counter() - begun
            fields = meta_fields(batch.schema)
            finite = np.isfinite(embeddings).all(axis=1)
            for row in np.flatnonzero(~finite):
                uri, view = batch["uri"][row].as_py(), batch["view_index"][row].as_py()
                message = f"the embedding of view {view} is not finite"
                failures.append(Failure(uri, "embed", "model_error", message, worker=worker()))
            column = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
            schema = pa.schema([*fields, pa.field("embedding", column.type, nullable=False)])
            columns = [*(batch[field.name] for field in fields), column]
            part = pa.table(columns, schema=schema)
            parts.append(part if finite.all() else part.filter(pa.array(finite)))
        return pa.concat_tables(parts) if parts else None

    def embed(self, batch: pa.RecordBatch, media: Media) -> np.ndarray:
        """float32 (rows, dim) of a batch of tubes."""
        from pipeline.batches import to_torch
        from pipeline.shards import schema_plan

        torch = self._torch
        held, _ = schema_plan(batch.schema)
        tubes = to_torch(batch, held, self._plans[media])
        outputs: list[np.ndarray] = []
        done = 0
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            while done < batch.num_rows:
                rows = min(self._batch_views, batch.num_rows - done)
                some = {name: tube[done : done + rows] for name, tube in tubes.items()}
                try:
                    views = {name: tube.to(self._device) for name, tube in some.items()}
                    outputs.append(self._model.embed(views).float().cpu().numpy())
                except torch.OutOfMemoryError:
                    self._halve()
                    continue
                self._metrics.batch(rows, self._settings.batch_views)
                done += rows
        return np.concatenate(outputs)

    def _halve(self) -> None:
        """Go on with smaller batches, from here to the end of the job."""
        if self._batch_views == 1:
            problem = "one view alone is more than the GPU has memory for; take a smaller model"
            raise SpecError("model.batch_views", 1, problem) from None
        self._batch_views //= 2
        self._torch.cuda.empty_cache()

    def _stored(
        self, items: list[dict[str, Any]], media: Media, receipt: Receipt
    ) -> Iterator[pa.RecordBatch]:
        """Rows of shards; the model waits while they are read."""
        covered, size = Covered(), self._settings.batch_views
        for item in items:
            reader = ShardReader(locate(self._root, "input.shards") / item["uri"])
            for start in range(item["first_row"], item["stop_row"], size):
                begun = time.perf_counter()
                batch = reader.rows(start, min(item["stop_row"], start + size))
                receipt.wait_seconds += time.perf_counter() - begun
                receipt.tube_bytes += batch.num_rows * reader.plan.bytes_per_clip
                covered.add(batch)
                yield batch
        receipt.video_seconds = covered.seconds if media == "video" else 0.0


def open_shards(spec: EmbedSpec) -> dict[Media, ShardSet]:
    """The shard sets of a spec's input, checked against its model's plans."""
    assert spec.input.shards is not None
    sets: dict[Media, ShardSet] = {}
    for name, files in shard_files(locate(spec.input.shards, "input.shards")).items():
        shards = ShardSet(files)
        still = shards.plan.clip_frames == 1 and shards.sampling.frames > 1
        media: Media = "image" if name == "image" or still else "video"
        wanted = spec.model.plans(shards.sampling)
        if media not in wanted:
            raise SpecError("model.name", spec.model.name, f"takes no images, but {name} holds some")
        require(shards.plan, wanted[media], f"{spec.input.shards}/{name}")
        sets[media] = shards
    return sets


def freeze_shards(root: str, sets: Mapping[Media, ShardSet], unit_bytes: int) -> pa.Table:
    """Units of consecutive shard rows, of about `unit_bytes` each; a unit lies in one shard."""
    rows: list[dict[str, Any]] = []
    folder = locate(root, "input.shards").path
    for media, shards in sorted(sets.items(), reverse=True):  # videos first
        most = max(1, unit_bytes // shards.plan.bytes_per_clip)
        for number, file in enumerate(shards.files):
            uri, count = file.location.path.removeprefix(f"{folder}/"), shards.rows_of(number)
            for first in range(0, count, most):
                stop = min(count, first + most)
                item = {"uri": uri, "first_row": first, "stop_row": stop}
                rows.append({"media": media, "clips": stop - first, "items": [item]})
    return pa.Table.from_pylist(rows, schema=STORED)


def pools(
    spec: EmbedSpec, run: Run, encoder: Encoder, cutting: Cutting, session: str, room: Room
) -> list[Pool]:
    """Decoders, one a core, feed a model on every GPU, or one model a node where there is none.

    Without a GPU the model is what takes time: it gets most of the cores to reserve, and threads for all; all
    of them where decoders have nodes of their own.
    """
    decode, model = spec.resources.decode, spec.resources.embed
    stored = spec.input.shards is not None
    here = room.where(model.labels)
    beside = not stored and not room.apart(decode.labels, model.labels)  # decoders share these cores
    on_gpu = bool(model.gpus if model.gpus is not None else here.gpus)
    cores = int(here.cpus / here.nodes)  # of a node
    decoding = 0.0 if not beside else float(max(1, cores // 4)) if cores > 1 else 0.5
    if on_gpu:
        gpus = model.gpus or 1.0
        cpus = model.cpus or 0.0  # its one thread mostly waits, and decoders want every core
        actors = model.most or max(1, int(here.gpus / gpus))
        threads = max(1, int(cpus))
    else:
        gpus = 0.0
        cpus = model.cpus or max(0.5, cores - decoding)
        actors = model.most or max(1, min(here.nodes, int(here.cpus)))
        threads = max(1, int(model.cpus or cores))
    labels = room.chosen(model.labels)
    arguments = (run, encoder, threads, cutting.root, gpus)
    embedders = Pool(Embed, arguments, actors, cpus, gpus, labels, model.least)
    if stored:
        return [embedders]
    decode_cpus = decode.cpus or (min(1.0, decoding) if beside and not on_gpu else 1.0)
    free = room.where(decode.labels).cpus - (actors * cpus if beside else 0)
    decoders, labels = decode.most or max(1, int(free / decode_cpus)), room.chosen(decode.labels)
    what, share = (run, cutting, session), decode.share
    return [Pool(Decode, what, decoders, decode_cpus, share, labels, decode.least), embedders]
