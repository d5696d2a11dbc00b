"""What is compared: one function for each way to read clips, each in a process of its own.

A reader takes a task and gives its clips in turn, as uint8 (32, 224, 224, 3). It imports its library when it
is first called, so that a process holds none but its own; all of them decode with one thread.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import models
from pipeline.plan import Canvas, Plan, Tube

FRAMES, STRIDE, SIZE, RATE = 32, 2, 224, 25
SPAN = FRAMES * STRIDE


@dataclass(frozen=True)
class Task:
    """Clips of one file: the position of the first frame of each."""

    path: str
    width: int
    height: int
    starts: tuple[int, ...]
    whole: bool  # all windows of the file in one pass, or one somewhere in it
    plan: str = "tubevit-b16"

    @property
    def windows(self) -> list[list[int]]:
        return [list(range(start, start + SPAN, STRIDE)) for start in self.starts]


@dataclass
class Clock:
    """CPU ms of this process with all its threads, by what they were spent on."""

    spent: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.process_time)

    def lap(self, name: str) -> None:
        now = time.process_time()
        self.spent[name] = self.spent.get(name, 0.0) + (now - self.since) * 1000
        self.since = now

    def skip(self) -> None:
        """What went on since the last lap does not count."""
        self.since = time.process_time()


Reader = Callable[[Task, Clock], Iterator[Any]]


# --- libavcodec alone, and ours -----------------------------------------------------------------------------


def floor(task: Task, clock: Clock) -> Iterator[Any]:
    """Seek to the key frame, decode up to the last frame that is needed; no pixels are made."""
    import av

    keys = _key_pts(task.path)
    clock.skip()  # where to seek is given to it
    with av.open(task.path) as container:
        stream = _one_thread(container)
        first, last = (round(i / RATE / stream.time_base) for i in (task.starts[0], task.windows[-1][-1]))
        if task.starts[0]:
            container.seek(max(key for key in keys if key <= first), stream=stream)
        for frame in container.decode(stream):
            if frame.pts >= last:
                break
    yield from ()


@functools.cache
def _key_pts(path: str) -> list[int]:
    import av

    with av.open(path) as container:
        return [p.pts for p in container.demux(video=0) if p.size and p.is_keyframe]


def ours(task: Task, clock: Clock) -> Iterator[dict[str, np.ndarray]]:
    """`read_clips`, then the cut into tubes, then a shard of all clips. Gives what was cut."""
    import pyarrow as pa

    from pipeline.rows import Rows
    from pipeline.sampling import Sampling
    from pipeline.shards import shard_schema, tube_arrays
    from pipeline.storage import atomic_file, locate
    from pipeline.video import Pixels, read_clips

    plan, place = plan_of(task.plan), locate(task.path)
    sampling, span = (
        Sampling(frames=FRAMES, stride=STRIDE, clips=1, height_px=SIZE, width_px=SIZE),
        (None, None),
    )
    if task.whole:
        every = {"clips": None, "every_seconds": SPAN / RATE, "end": "drop"}
        sampling = sampling.model_copy(update=every)
    else:
        span = (task.starts[0] / RATE, (task.starts[0] + SPAN) / RATE)
    schema = shard_schema(plan, sampling)
    rows = Rows(schema, plan, batch_rows=len(task.starts))
    item = {"uri": task.path, "start_seconds": span[0], "end_seconds": span[1]}
    batch = None
    clock.skip()  # made once for a whole job
    for view in read_clips(place, sampling, plan, span):
        clock.lap("pixels")
        assert isinstance(view, Pixels), view
        batch = rows.add(item, "", view, sampling)
        clock.lap("cut")
    clock.lap("pixels")
    with tempfile.TemporaryDirectory() as folder:
        clock.skip()
        with atomic_file(locate(folder) / "shard.arrow") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(batch)
        clock.lap("shard")
    tubes = tube_arrays(batch, plan)
    for row in range(batch.num_rows):
        yield {name: tube[row] for name, tube in tubes.items()}
    clock.skip()


@functools.cache
def plan_of(name: str) -> Plan:
    """The plan of a model, or "dense": every pixel of every frame."""
    if name != "dense":
        return models.plan(name, frames=FRAMES, size=(SIZE, SIZE), filter="area", clip=None)
    canvas, patch = Canvas(frames=FRAMES, height_px=SIZE, width_px=SIZE), (1, 16, 16)
    return Plan(tubes=(Tube(name="patches", kernel=patch, stride=patch, canvas=canvas),))


# --- PyAV as it is mostly used ------------------------------------------------------------------------------


def from_the_start(task: Task, clock: Clock) -> Iterator[np.ndarray]:
    """Every frame from the file's beginning to full-size RGB; those that are wanted are then scaled."""
    yield from _by_pyav(task, seek=False, every=True)


def seek_then_rgb(task: Task, clock: Clock) -> Iterator[np.ndarray]:
    """Seek, and only the frames that are wanted to full-size RGB."""
    yield from _by_pyav(task, seek=True, every=False)


def reference(task: Task, clock: Clock) -> Iterator[np.ndarray]:
    """What all are compared with: decoded from the start, full-size RGB, box filter."""
    yield from _by_pyav(task, seek=False, every=False)


def _by_pyav(task: Task, seek: bool, every: bool) -> Iterator[np.ndarray]:
    import av
    from PIL import Image

    left, top, right, bottom = box = _centre(task)
    assert (right - left, bottom - top) == (task.height, task.height)
    with av.open(task.path) as container:
        stream = _one_thread(container)
        tick = 1 / RATE / stream.time_base
        if seek and task.starts[0]:
            container.seek(round(task.starts[0] * tick), stream=stream)
        frames = container.decode(stream)
        for window in task.windows:
            wanted, pictures = {round(i * tick) for i in window}, []
            for frame in frames:
                if every or frame.pts in wanted:
                    picture = frame.to_ndarray(format="rgb24")
                if frame.pts in wanted:
                    small = Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BOX, box)
                    pictures.append(np.asarray(small))
                    if len(pictures) == FRAMES:
                        break
            yield np.stack(pictures)


def _one_thread(container: Any) -> Any:
    stream = container.streams.video[0]
    stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
    return stream


def _centre(task: Task) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest square in the middle of a wide picture."""
    left = (task.width - task.height) // 2
    return left, 0, left + task.height, task.height


# --- other libraries ----------------------------------------------------------------------------------------


def decord(task: Task, clock: Clock) -> Iterator[np.ndarray]:
    """Its own scaling, to 224 pixels of height; it cannot crop."""
    import decord

    decord.logging.set_level(decord.logging.ERROR)
    width = round(task.width * SIZE / task.height)
    left = (width - SIZE) // 2
    video = decord.VideoReader(task.path, ctx=decord.cpu(0), width=width, height=SIZE, num_threads=1)
    for window in task.windows:
        yield np.ascontiguousarray(video.get_batch(window).asnumpy()[:, :, left : left + SIZE])


def torchcodec(seek_mode: str, task: Task, clock: Clock) -> Iterator[np.ndarray]:
    """Its own transforms: cropped, then scaled, in its decoder."""
    import torch
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import CenterCrop, Resize

    torch.set_num_threads(1)
    video = VideoDecoder(
        task.path,
        dimension_order="NHWC",
        num_ffmpeg_threads=1,
        device="cpu",
        seek_mode=seek_mode,
        transforms=[CenterCrop((task.height, task.height)), Resize((SIZE, SIZE))],
    )
    for window in task.windows:
        yield video.get_frames_at(window).data.numpy()


def opencv(task: Task, clock: Clock) -> Iterator[np.ndarray]:
    """Frames that are not wanted are grabbed without being converted."""
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"  # quiet: what it cannot read is told by us
    import cv2

    cv2.setNumThreads(1)
    left, _, right, _ = _centre(task)
    video = cv2.VideoCapture(task.path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if task.starts[0]:
        video.set(cv2.CAP_PROP_POS_FRAMES, task.starts[0])
    position = task.starts[0]
    for window in task.windows:
        pictures = []
        for wanted in window:
            while position <= wanted:
                if not video.grab():
                    raise ValueError(f"no frame {position}")
                position += 1
            picture = cv2.resize(
                video.retrieve()[1][:, left:right], (SIZE, SIZE), interpolation=cv2.INTER_AREA
            )
            pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        yield np.stack(pictures)
    video.release()


READERS: dict[str, Reader] = {
    "floor: libavcodec alone": floor,
    "ours": ours,
    "PyAV from the start, RGB": from_the_start,
    "PyAV seek, RGB of wanted": seek_then_rgb,
    "decord": decord,
    "torchcodec exact": functools.partial(torchcodec, "exact"),
    "torchcodec approximate": functools.partial(torchcodec, "approximate"),
    "OpenCV": opencv,
    "reference": reference,
}
PACKAGES = ("av", "decord", "torchcodec", "torch", "opencv-python-headless", "pillow", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def library_path(folder: Path) -> str:
    """An LD_LIBRARY_PATH by which torchcodec finds an FFmpeg.

    It wants shared libraries by their plain names. PyAV's wheel has them, but with a hash in each name: links
    with the plain names lead there, and so both are measured with the very same libavcodec.
    """
    import av

    wheel = Path(av.__file__).parent.parent / "av.libs"
    for library in [*wheel.glob("libav*.so.*"), *wheel.glob("libsw*.so.*")]:
        name, _, version = library.name.partition(".so.")
        link = folder / f"{name.rpartition('-')[0]}.so.{version.split('.')[0]}"
        link.symlink_to(library)
    return os.pathsep.join(filter(None, [str(folder), str(wheel), os.environ.get("LD_LIBRARY_PATH")]))


def serve(name: str, pipe: Connection) -> None:
    """A reader's process: take a task, do it, send CPU ms and the first and last clip. Ends with the pipe."""
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer: Any = _measured(READERS[name], task)
        except Exception as error:
            answer = f"{type(error).__name__}: {' '.join(str(error).split())}"
        pipe.send(answer)


def _measured(read: Reader, task: Task) -> tuple[dict[str, float], list[Any]]:
    clock, kept, count = Clock(), [], 0
    for clip in read(task, clock):
        kept[1:] = [clip]
        count += 1
    if not clock.spent:
        clock.lap("all")
    if count not in (0, len(task.starts)):
        raise ValueError(f"{count} clips of {len(task.starts)}")
    return clock.spent, kept
