"""How fast training is fed from shards: against reading in order, Ray Data, WebDataset and decoding live.

    python -m benchmarks.feed SHARDS [--batch 64] [--seconds 10] [--videos LIST.csv]

SHARDS is the output folder of a `kind: shard` job. Every way gives whole batches of torch tensors, in random
order unless it says otherwise, in one process; bytes are those of the tubes, and each page of them is touched
once more. *Cold*: the files' pages have been dropped from this machine's cache before. What a GPU needs is an
estimate: a training step at a stated share of its peak.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import models
from jobs.datasets import open_set
from pipeline.batches import Dataset
from pipeline.shards import ShardReader

out = Console(width=130)
# Dense bfloat16 peak of an H100 or H200 (NVIDIA's data sheet), and the share of it that a good step gets.
PEAK_FLOPS, SHARE = 989e12, 0.4

Batches = Callable[[], Iterator[Mapping[str, Tensor]]]


def drop_cache(files: list[str]) -> None:
    """Let this machine forget what it has read of some files."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measured(batches: Batches, seconds: float, most: int | None = None) -> tuple[float, float]:
    """(bytes, clips) a second, over about so many seconds or `most` clips, the first batch not counted."""
    source = batches()
    next(source)
    size, clips, begun = 0, 0, time.perf_counter()
    for tubes in source:
        for x in tubes.values():
            x.view(-1)[:: 1 << 12].sum()  # a byte of every page
            size += x.numel()
        clips += len(next(iter(tubes.values())))
        if time.perf_counter() - begun > seconds or (most is not None and clips >= most):
            break
    elapsed = time.perf_counter() - begun
    return size / elapsed, clips / elapsed


def ours(dataset: Dataset, batch: int) -> Batches:
    def batches() -> Iterator[Mapping[str, Tensor]]:
        order = dataset.order(0)
        for step in range(1 << 20):
            epochs, clips = order.at(range(step * batch, (step + 1) * batch))
            yield dataset.read(clips, epochs).tubes

    return batches


def in_order(dataset: Dataset, batch: int) -> Batches:
    def batches() -> Iterator[Mapping[str, Tensor]]:
        while True:
            for start in range(0, len(dataset) - batch + 1, batch):
                numbers = np.arange(start, start + batch)
                yield dataset.read(numbers, np.zeros_like(numbers)).tubes

    return batches


def ray_data(files: list[str], batch: int) -> Batches:
    """Ray Data over the same files, each a block, rows shuffled in a buffer of four batches."""

    def batches() -> Iterator[Mapping[str, Tensor]]:
        import ray

        def load(paths: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
            for path in paths["path"]:
                reader = ShardReader(str(path))
                for start in range(0, len(reader), 64):
                    yield dict(reader.tubes(reader.plan, start, min(start + 64, len(reader))))

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            while True:
                dataset = ray.data.from_items([{"path": path} for path in files]).repartition(len(files))
                tubes = dataset.map_batches(load, batch_size=1)
                yield from tubes.iter_torch_batches(
                    batch_size=batch, local_shuffle_buffer_size=4 * batch, drop_last=True
                )
        finally:
            ray.shutdown()

    return batches


def webdataset(files: list[str], batch: int) -> Batches:
    """The same tubes as .npy members of tar files, a sample a clip, shuffled in a buffer of four batches."""
    import webdataset as wds

    folder = Path(tempfile.mkdtemp(prefix="feed-"))
    for number, path in enumerate(files):
        reader = ShardReader(path)
        with wds.TarWriter(str(folder / f"{number:05d}.tar")) as tar:
            for row in range(len(reader)):
                sample: dict[str, object] = {"__key__": f"{number}_{row}"}
                for name, x in reader.tubes(reader.plan, row, row + 1).items():
                    file = io.BytesIO()
                    np.save(file, x[0])
                    sample[f"{name}.npy"] = file.getvalue()
                tar.write(sample)

    def batches() -> Iterator[Mapping[str, Tensor]]:
        while True:
            dataset = wds.WebDataset([str(p) for p in sorted(folder.iterdir())], shardshuffle=len(files))
            for samples in (
                dataset.shuffle(4 * batch).decode().batched(batch, partial=False, collation_fn=list)
            ):
                names = [name for name in samples[0] if name.endswith(".npy")]
                yield {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in names}

    return batches


def live(dataset: Dataset, videos: Path, batch: int) -> Batches:
    """Videos opened, decoded and cut when they are wanted, by this project's own reader."""
    from pipeline.cut import cut
    from pipeline.storage import locate
    from pipeline.tables import read_table
    from pipeline.video import Pixels, read_clips

    reader = ShardReader(dataset.files[0].location)
    uris = [uri for table in read_table(str(videos)) for uri in table["uri"].to_pylist()]

    def batches() -> Iterator[Mapping[str, Tensor]]:
        rng = np.random.default_rng(0)
        while True:
            tubes = {t.name: np.empty((batch, *t.shape), np.uint8) for t in dataset.plan.tubes}
            for row, uri in enumerate(rng.choice(uris, batch)):
                view = next(iter(read_clips(locate(str(videos.parent / uri)), reader.sampling, dataset.plan)))
                assert isinstance(view, Pixels)
                cut(view.frames, dataset.plan, {name: x[row] for name, x in tubes.items()})
            yield {name: torch.from_numpy(x) for name, x in tubes.items()}

    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--videos", type=Path, help="the table that the shards were cut from")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = open_set(asked.shards, "SHARDS")
    dataset = Dataset("clips", found.files, found.plan)
    files = [file.location.path for file in found.files]
    ways: dict[str, Batches] = {
        "ours, cold": ours(dataset, asked.batch),
        "ours": ours(dataset, asked.batch),
        "ours, in order": in_order(dataset, asked.batch),
        "Ray Data": ray_data(files, asked.batch),
    }
    if importlib.util.find_spec("webdataset") is not None:
        ways["WebDataset"] = webdataset(files, asked.batch)
    if asked.videos is not None:
        ways["decoded live"] = live(dataset, asked.videos, asked.batch)
    table = Table(
        title=f"{len(dataset):,} clips, {found.plan.bytes_per_clip:,} bytes each", title_justify="left"
    )
    for column in ("", "MB/s", "clips/s", "batches/s", "of ours"):
        table.add_column(column, justify="left" if not column else "right")
    rates: dict[str, float] = {}
    for name, batches in ways.items():
        cold = "cold" in name
        if cold:
            drop_cache(files)
        # The second time around nothing is cold any more.
        most = len(dataset) - 2 * asked.batch if cold else None
        size, rates[name] = measured(batches, asked.seconds, most)
        out.print(f"{name}: {size / 1e6:,.0f} MB/s", style="dim")
        cells = (f"{size / 1e6:,.0f}", f"{rates[name]:,.0f}", f"{rates[name] / asked.batch:.1f}")
        table.add_row(name, *cells, f"{rates[name] / rates.get('ours', rates[name]):.3f}")
    out.print(f"{time.strftime('%Y-%m-%d')}  Python {platform.python_version()}, {os.cpu_count()} cores")
    out.print(table)
    for name in ("tubevit-small", "tubevit-b16"):
        step = 3 * models.describe(name).gflops_per_view * 1e9  # backward is twice forward
        wanted = PEAK_FLOPS * SHARE / step
        size = wanted * models.plan(name).bytes_per_clip
        rate = f"{wanted:,.0f} clips/s, {size / 1e6:,.0f} MB/s"
        out.print(f"{name} on an H200 at {SHARE:.0%} of its peak (estimated): {rate}")


if __name__ == "__main__":
    main()
