"""One open video or image file: when each of its frames is shown, and the frames themselves (PyAV).

Decoding is what costs, so what is wanted is sought rather than decoded from the start, and frames that
neither the caller nor another frame needs are skipped unread.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
from av.error import FFmpegError
from av.stream import Disposition
from pyarrow import fs as pafs

from pipeline.errors import MediaError, Reason
from pipeline.sampling import Timeline
from pipeline.storage import Location

# Containers whose seek to a key frame's own pts lands on it; any other is read from its start. MPEG-TS lands
# late, and a GIF's frames are all marked as key frames though each builds on the one before.
SEEKABLE = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}
# A seek flushes the decoder; over fewer frames than this it is cheaper to go on decoding.
WORTH_A_SEEK_FRAMES = 12
REMOTE_READ_BYTES = 1 << 20
# Decoders that heed `skip_frame` packet by packet. dav1d takes it once, when it opens, and for good.
SKIPS_BY_PACKET = {"h264", "hevc", "mpeg4"}
# From demuxing a damaged file; PyAV gives an IndexError where a stream turns up that its header did not name.
CANNOT_GO_ON = (FFmpegError, IndexError)

av.logging.set_level(av.logging.PANIC)  # errors come back as exceptions; FFmpeg's own text is noise


@dataclass(frozen=True)
class Probe:
    """What a file's header says, without decoding it. Headers lie; use it to estimate only."""

    format: str
    codec: str
    width_px: int
    height_px: int
    frames_per_second: float | None
    duration_seconds: float | None


class Video:
    """One open file: its timeline, and its frames by their position in it."""

    def __init__(self, location: Location):
        """Open and index a file without decoding it.

        Raises:
            MediaError: `unreadable`, `no_video` or `corrupt`.
        """
        self._location = location
        self._container, self._stream = _open(location)
        self._seekable = self._container.format.name in SEEKABLE
        self._counted = False
        try:
            self._index()
            if self._counted or not len(self.timeline.pts):
                self._index_by_decoding()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def sample_aspect_ratio(self) -> Fraction:
        return self._stream.sample_aspect_ratio or Fraction(1)

    def frames(self, positions: Sequence[int] | np.ndarray) -> Iterator[tuple[int, av.VideoFrame | None]]:
        """Yield (position, frame) for sorted distinct positions; None for a frame that cannot be decoded."""
        runs = self._runs(np.asarray(positions, dtype=np.int64))
        while runs:
            start_pts, wanted = runs.popleft()
            try:
                if start_pts is None:
                    self._reopen()
                else:
                    self._seek(start_pts)
                yield from self._decode(wanted)
            except _LandedLateError:
                # Rare: this file cannot be sought exactly, so read what is left of it in order.
                self._seekable = False
                runs = deque([(None, np.concatenate([wanted, *(rest for _, rest in runs)]))])

    def _seek(self, pts: int) -> None:
        try:
            self._container.seek(pts, stream=self._stream, backward=True, any_frame=False)
        except FFmpegError:  # a damaged index
            raise _LandedLateError from None

    def _index(self) -> None:
        """Read every packet's timestamp: sorted, they are those of the frames that will come out."""
        pts: list[int] = []
        keys: list[int] = []
        end_pts = 0
        self.tail_error: str | None = None
        context = self._stream.codec_context
        hides_frames = context.name == "vp8"
        # AVI stores no presentation times; with B-frames the ones made up for it are wrong.
        if self._container.format.name == "avi" and context.has_b_frames:
            self._counted = True
            return
        try:
            for packet in self._container.demux(self._stream):
                if not packet.size:
                    continue
                if packet.pts is None:
                    self._counted = True
                    return
                if packet.is_keyframe:
                    keys.append(packet.pts)
                # A VP8 packet may hold a frame that is only referred to, never shown: bit 4 of its header.
                if packet.is_discard or (hides_frames and not bytes(packet)[0] & 0x10):
                    continue
                pts.append(packet.pts)
                end_pts = max(end_pts, packet.pts + (packet.duration or 0))
        except CANNOT_GO_ON as error:
            self.tail_error = _text(error)
        order = np.unique(np.array(pts, dtype=np.int64))
        self._counted = len(order) < len(pts)
        self._keys = np.unique(np.array(keys, dtype=np.int64))
        self._set_timeline(order, end_pts)

    def _index_by_decoding(self) -> None:
        """For streams whose packets have no usable timestamps: count what comes out."""
        self._counted, self._seekable = True, False
        self._keys = np.empty(0, np.int64)
        self.tail_error = None
        self._reopen()
        pts: list[int | None] = []
        try:
            for packet in self._container.demux(self._stream):
                try:
                    pts.extend(frame.pts for frame in packet.decode())
                except FFmpegError as error:
                    self.tail_error = _text(error)
        except CANNOT_GO_ON as error:
            self.tail_error = _text(error)
        if not pts:
            reason: Reason = "corrupt" if self.tail_error else "no_video"
            raise MediaError(reason, self.tail_error or "no frame comes out of its video stream")
        stamps = np.array([-1 if p is None else p for p in pts], dtype=np.int64)
        if any(p is None for p in pts) or (np.diff(stamps) <= 0).any():
            rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
            self.timeline = Timeline(np.arange(len(pts)), len(pts), 1 / Fraction(rate))
        else:
            self._set_timeline(stamps, 0)

    def _set_timeline(self, pts: np.ndarray, end_pts: int) -> None:
        assert self._stream.time_base is not None
        if len(pts) and end_pts <= pts[-1]:  # no durations in the file
            rate = self._stream.average_rate
            usual = int(np.median(np.diff(pts))) if len(pts) > 1 else 0
            end_pts = int(pts[-1]) + max(
                1, usual or (round(1 / rate / self._stream.time_base) if rate else 1)
            )
        self.timeline = Timeline(pts, end_pts, self._stream.time_base)

    def _runs(self, positions: np.ndarray) -> deque[tuple[int | None, np.ndarray]]:
        """Split positions into runs, each with the key frame's pts to seek to (None: from the start)."""
        if not self._seekable or not len(self._keys) or not len(positions):
            return deque([(None, positions)] if len(positions) else [])
        pts = self.timeline.pts
        which = np.searchsorted(self._keys, pts[positions], side="right") - 1
        key_pts = self._keys[np.maximum(which, 0)]
        key_positions = np.searchsorted(pts, key_pts)
        skipped = key_positions[1:] - positions[:-1]
        starts = [0, *(np.flatnonzero(skipped >= WORTH_A_SEEK_FRAMES) + 1)]
        stops = [*starts[1:], len(positions)]
        return deque(
            (int(key_pts[a]) if which[a] >= 0 else None, positions[a:b])
            for a, b in zip(starts, stops, strict=True)
        )

    def _decode(self, positions: np.ndarray) -> Iterator[tuple[int, av.VideoFrame | None]]:
        """Decode on from where the container stands until the last of `positions` is out."""
        pts = self.timeline.pts
        pending = deque(int(p) for p in positions)
        wanted_pts = {int(pts[p]) for p in positions}
        sought = self._seekable and len(self._keys) > 0
        broken_until: float = -math.inf
        count = -1
        context = self._stream.codec_context
        skips = context.name in SKIPS_BY_PACKET and not self._counted
        for packet in _packets(self._container, self._stream):
            if sought:
                if packet.pts is not None and packet.pts > pts[positions[0]]:
                    raise _LandedLateError
                sought = False
            if skips:
                # Frames nothing refers to are dropped unread, unless they are wanted: bit-exact, and a
                # fifth to a third cheaper where a stream has them.
                context.skip_frame = "DEFAULT" if not packet.size or packet.pts in wanted_pts else "NONREF"
            try:
                frames = packet.decode()
            except FFmpegError:
                broken_until = self._next_key(packet.pts)
                continue
            for frame in frames:
                count += 1
                if self._counted:
                    position, stamp = count, count
                    broken_until = -math.inf if frame.key_frame else broken_until
                elif frame.pts is not None:
                    position, stamp = int(np.searchsorted(pts, frame.pts)), frame.pts
                else:
                    continue
                if frame.is_corrupt:
                    broken_until = max(broken_until, self._next_key(frame.pts))
                while pending and pending[0] < position:
                    yield pending.popleft(), None
                if pending and pending[0] == position:
                    exact = self._counted or stamp == pts[position]
                    yield pending.popleft(), frame if exact and stamp >= broken_until else None
            if not pending:
                return
        while pending:
            yield pending.popleft(), None

    def _next_key(self, pts: int | None) -> float:
        """The pts from which on decoding is sound again after a fault at `pts`."""
        if pts is None:
            return math.inf
        k = int(np.searchsorted(self._keys, pts, side="right"))
        return float(self._keys[k]) if k < len(self._keys) else math.inf

    def _reopen(self) -> None:
        self._container.close()
        self._container, self._stream = _open(self._location)


class _LandedLateError(Exception):
    """A seek ended behind the frame that was asked for."""


def probe(location: Location) -> Probe:
    """Read a file's header. Raises MediaError like `Video`."""
    container, stream = _open(location)
    with container:
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / 1_000_000
        rate = stream.average_rate
        context = stream.codec_context
        return Probe(
            container.format.name,
            context.name,
            context.width,
            context.height,
            float(rate) if rate else None,
            duration,
        )


def _open(location: Location) -> tuple[av.container.InputContainer, av.VideoStream]:
    try:
        info = location.info()
        if info.type == pafs.FileType.NotFound:
            raise MediaError("unreadable", "no such file")
        if info.type != pafs.FileType.File:
            raise MediaError("unreadable", "not a regular file")  # opening a FIFO would wait for ever
        if not info.size:
            raise MediaError("unreadable", "the file is empty")
        source = f"file:{location.path}" if location.is_local else _remote(location)
        container = av.open(source, "r", metadata_errors="replace")
    except (FFmpegError, OSError, pa.ArrowException) as error:
        raise MediaError("unreadable", _text(error)) from error
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams or streams[0].codec_context is None:
        container.close()
        raise MediaError("no_video", "no video stream in it that can be decoded")
    stream = streams[0]
    stream.codec_context.thread_type = "NONE"  # one decoder a core beats several threads a decoder
    stream.codec_context.thread_count = 1
    return container, stream


def _remote(location: Location) -> io.BufferedReader:
    raw = location.filesystem.open_input_file(location.path)
    return io.BufferedReader(raw, REMOTE_READ_BYTES)


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets up to the end, or to where the file cannot be read further."""
    try:
        yield from container.demux(stream)
    except CANNOT_GO_ON:
        return


def _text(error: BaseException) -> str:
    """The error in a line, without the path: that has a column of its own."""
    text = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"
