"""The frames of one open video or image file, by their position in its timeline (PyAV).

Decoding is what costs, so what is wanted is sought rather than decoded from the start, and frames that
neither the caller nor another frame needs are skipped unread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError

from pipeline.av1 import Skipper
from pipeline.errors import MediaError
from pipeline.index import read_index
from pipeline.limits import Hardware, Limits
from pipeline.media import CANNOT_GO_ON, Media, error_text
from pipeline.sampling import Reach
from pipeline.storage import Location

# A seek flushes the decoder; over fewer frames than this it is cheaper to go on decoding.
WORTH_A_SEEK_FRAMES = 12
# Decoders that heed `skip_frame` packet by packet. dav1d takes it once, when it opens, and for good.
SKIPS_BY_PACKET = {"h264", "hevc", "mpeg4"}
AV1_DECODERS = {"libdav1d", "av1"}


@dataclass(frozen=True)
class Shot:
    """A frame by its position in the timeline; None for one that cannot be decoded.

    damaged: it is not what was filmed, or may not be.
    """

    position: int
    frame: av.VideoFrame | None
    damaged: bool


@dataclass(frozen=True)
class _Run:
    """Frames that are decoded in one go, from a key frame on.

    key: its number; -1 is the one before the first that a part of a file knows, None the start of the file.
    sure: what turns out damaged is.
    """

    key: int | None
    positions: np.ndarray
    sure: bool = False


class Video:
    """One open file: its timeline, or a part of it, and the frames of that by position."""

    def __init__(
        self,
        location: Location,
        limits: Limits | None = None,
        reach: Reach | None = None,
        keep_damaged: bool = False,
        hardware: Hardware | None = None,
    ):
        """Open and index a file without decoding it.

        Args:
            reach: the part of it that is needed; None: all of it.
            keep_damaged: give frames as damaged as they come, and the one before for one that is missing.

        Raises:
            MediaError: `unreadable`, `no_video`, `corrupt`, `too_large` or `timeout`.
        """
        self._keep = keep_damaged
        self.decoded = 0  # frames that the decoder has given out so far
        self._media = Media(location, limits or Limits(), not keep_damaged, hardware)
        try:
            self._index = read_index(self._media, reach)
        except BaseException:
            self.close()
            raise
        self.timeline = self._index.timeline
        self._keys = self._index.keys

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._media.close()

    @property
    def tail_error(self) -> str | None:
        """Why the file could not be read to its end."""
        return self._index.tail_error

    @property
    def sample_aspect_ratio(self) -> Fraction:
        return self._media.stream.sample_aspect_ratio or Fraction(1)

    def check(self) -> None:
        """Decode all of the file. Raises MediaError `corrupt` at the first damage."""
        if self.tail_error is not None:
            raise MediaError("corrupt", f"cannot be read further: {self.tail_error}")
        self._media.reopen()
        try:
            for packet in self._media.packets():
                frames = packet.decode()
                self.decoded += len(frames)
                if any(frame.is_corrupt for frame in frames):
                    raise MediaError("corrupt", "a frame is damaged", self._seconds(packet.pts))
        except CANNOT_GO_ON as error:
            raise MediaError("corrupt", f"a frame cannot be decoded: {error_text(error)}") from error

    def _seconds(self, pts: int | None) -> float | None:
        return None if pts is None else self.timeline.seconds(pts)

    def frames(self, positions: Sequence[int] | np.ndarray) -> Iterator[Shot]:
        """The frames at sorted distinct positions, in order."""
        runs = self._runs(np.asarray(positions, dtype=np.int64))
        latest: av.VideoFrame | None = None
        while runs:
            run = runs.popleft()
            done = 0
            try:
                for shot in self._decode(run):
                    done += 1
                    if self._keep and shot.frame is None:
                        shot = Shot(shot.position, latest, True)
                    latest = shot.frame
                    yield shot
            except _DoubtfulError:
                assert run.key is not None
                runs.appendleft(_Run(run.key - 1, run.positions[done:], sure=True))
            except _LandedElsewhereError:
                # Rare: this file cannot be sought exactly, so read what is left of it in order.
                self._keys = np.empty(0, np.int64)
                left = [run.positions[done:], *(rest.positions for rest in runs)]
                runs = deque([_Run(None, np.concatenate(left))])

    def _runs(self, positions: np.ndarray) -> deque[_Run]:
        """Split positions into runs."""
        seekable = len(self._keys) and (not self._index.counted or self._index.places is not None)
        if not seekable or not len(positions):
            return deque([_Run(None, positions)] if len(positions) else [])
        pts = self.timeline.pts
        which = np.searchsorted(self._keys, pts[positions], side="right") - 1
        key_positions = np.searchsorted(pts, self._keys[np.maximum(which, 0)])
        skipped = key_positions[1:] - positions[:-1]
        starts = [0, *(np.flatnonzero(skipped >= WORTH_A_SEEK_FRAMES) + 1)]
        stops = [*starts[1:], len(positions)]
        return deque(
            _Run(int(which[a]) if which[a] >= 0 else None, positions[a:b])
            for a, b in zip(starts, stops, strict=True)
        )

    def _seek(self, key: int | None) -> None:
        if key is None:
            self._media.reopen()
            return
        container, places = self._media.container, self._index.places
        try:
            if places is None:
                stamp = int(self._keys[key]) if key >= 0 else int(self._keys[0]) - 1
                container.seek(stamp, stream=self._media.stream)
            else:
                container.seek(int(places[key]), stream=self._media.stream, unsupported_byte_offset=True)
        except FFmpegError:  # a damaged index
            raise _LandedElsewhereError from None

    def _decode(self, run: _Run) -> Iterator[Shot]:
        """Decode from a run's key frame on until the last of its positions is out."""
        self._seek(run.key)
        pts, keys, counted = self.timeline.pts, self._keys, self._index.counted
        pending = deque(int(p) for p in run.positions)
        wanted = {int(pts[p]): int(p) for p in run.positions}
        broken_until: float = -math.inf
        number = 0 if run.key is None else int(keys[run.key])  # of the next packet, and of the next frame out
        position = number - 1
        context = self._media.stream.codec_context
        skips, skipping = context.name in SKIPS_BY_PACKET and not counted, False
        context.skip_frame = "DEFAULT"
        skipper = Skipper(context.extradata) if context.name in AV1_DECODERS and not counted else None
        anew_at = {int(key) for key in keys} if counted else set()
        first = run.key is not None
        for packet in self._readable():
            if counted and packet.size:
                packet.pts = number
                number += 1
            if first:
                self._require_landing(packet, run)
                first = False
            if skips and skipping != (unwanted := packet.pts not in wanted and packet.size > 0):
                # Frames nothing refers to are dropped unread, unless they are wanted: bit-exact, and a
                # fifth to a third cheaper where a stream has them.
                context.skip_frame = "NONREF" if unwanted else "DEFAULT"
                skipping = unwanted
            if skipper is not None and packet.size:
                traceless = skipper.leaves_no_trace(bytes(packet))
                if traceless and packet.pts not in wanted:
                    continue
            try:
                frames = packet.decode()
            except FFmpegError as error:
                self._media.require_size(error)
                broken_until = max(broken_until, self._broken_by(packet.pts, run))
                continue
            self.decoded += len(frames)
            for frame in frames:
                stamp = frame.pts
                if counted:
                    anew = stamp in anew_at if anew_at else frame.key_frame
                    # The number of a frame that starts anew is sure, whatever was lost before it.
                    position = stamp if anew_at and anew and stamp is not None else position + 1
                    broken_until = -math.inf if anew else broken_until
                    stamp = position
                elif stamp is None:
                    continue
                if frame.is_corrupt:
                    broken_until = max(broken_until, self._broken_by(stamp, run))
                if not counted:
                    if stamp not in wanted:
                        continue
                    position = wanted[stamp]
                while pending and pending[0] < position:
                    yield Shot(pending.popleft(), None, True)
                if pending and pending[0] == position:
                    sound = stamp >= broken_until
                    yield Shot(pending.popleft(), frame if sound or self._keep else None, not sound)
            if not pending:
                return
        while pending:
            yield Shot(pending.popleft(), None, True)

    def _require_landing(self, packet: av.Packet, run: _Run) -> None:
        """Raise _LandedElsewhereError unless a seek has led to a key frame at or before what is wanted."""
        assert run.key is not None
        exact = run.key >= 0 and packet.pts == self._keys[run.key]
        early = packet.pts is not None and packet.pts <= self.timeline.pts[run.positions[0]]
        if not exact and (self._index.places is not None or not early or not packet.is_keyframe):
            raise _LandedElsewhereError

    def _readable(self) -> Iterator[av.Packet]:
        """The packets up to the end, or to where the file cannot be read further."""
        try:
            yield from self._media.packets()
        except CANNOT_GO_ON:
            return

    def _broken_by(self, pts: int | None, run: _Run) -> float:
        """The pts from which on decoding is sound again after a fault at `pts`."""
        if pts is None:
            return math.inf
        k = int(np.searchsorted(self._keys, pts, side="right"))
        if run.key is not None and not run.sure:
            if pts < self._keys[run.key]:
                return -math.inf  # it refers to what lies before the key frame that was sought: not wanted
            is_first = run.key == 0 and self._keys[0] <= self.timeline.origin_pts
            if k == run.key + 1 and not is_first:
                raise _DoubtfulError
        return float(self._keys[k]) if k < len(self._keys) else math.inf


class _DoubtfulError(Exception):
    """Something failed right behind the key frame that was sought: perhaps for want of what is before it."""


class _LandedElsewhereError(Exception):
    """A seek did not end where it was meant to."""
