"""Which frames of a video make its clips. Pure integer arithmetic on presentation timestamps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.errors import MediaError
from pipeline.plan import Filter, Frozen


class RandomCrops(Frozen):
    """Parts of a video's picture to train on, drawn once for all of its clips (arXiv:1409.4842, section 6).

    count: how many, each a view of every clip. area: how much of the largest part of its shape is taken, at
    least and at most. aspect: by how much its shape may differ from the canvas', either way. seed: together
    with the file's name and the crop's number it decides.
    """

    count: PositiveInt = 4
    area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.3, 1.0)
    aspect: Annotated[float, Field(ge=1)] = 4 / 3
    seed: NonNegativeInt = 0


class Sampling(Frozen):
    """How clips are taken from a video, and at which size.

    frames: sampled frames of a clip.
    stride | fps: every `stride`-th frame of the video, or `fps` frames a second by timestamp.
    clips | every_seconds: that many clips evenly spread from the first to the last (one: the middle), or a
        window that starts every so many seconds until the end is covered.
    crops: 1 (centre) or 3 (both ends and the centre of the longer side); the short side always fits.
    random_crops: others in their place, for training.
    end: what fills a clip that reaches past the end: the last frame repeated, the video from its start
        again, or nothing, in which case that clip is dropped.
    corrupt: what becomes of a clip that damage in the file touches: it is dropped and named; or kept, with
        its pictures as damaged as they come and the one before in place of one that is missing; or all
        of the file fails, which costs a decoding of its own beforehand.
    """

    frames: PositiveInt = 32
    stride: PositiveInt | None = None
    fps: Annotated[float, Field(ge=0.001)] | None = None
    height_px: PositiveInt = 224
    width_px: PositiveInt = 224
    filter: Filter = "area"
    clips: PositiveInt | None = None
    every_seconds: Annotated[float, Field(ge=0.001)] | None = None
    crops: Literal[1, 3] = 1
    random_crops: RandomCrops | None = None
    end: Literal["repeat", "loop", "drop"] = "repeat"
    corrupt: Literal["drop_clip", "keep", "fail_file"] = "drop_clip"

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.stride is not None and self.fps is not None:
            raise ValueError("stride and fps exclude each other; keep one")
        if self.clips is not None and self.every_seconds is not None:
            raise ValueError("clips and every_seconds exclude each other; keep one")
        if self.crops != 1 and self.random_crops is not None:
            raise ValueError("crops and random_crops exclude each other; keep one")
        if self.random_crops is not None and self.random_crops.area[0] > self.random_crops.area[1]:
            raise ValueError(f"random_crops.area = {self.random_crops.area}: the least comes first")
        if self.stride is None and self.fps is None:
            object.__setattr__(self, "stride", 2)
        if self.clips is None and self.every_seconds is None:
            object.__setattr__(self, "clips", 1)
        return self

    @property
    def views(self) -> int:
        """How many crops there are of each clip."""
        return self.crops if self.random_crops is None else self.random_crops.count

    @property
    def still(self) -> Self:
        """The same of an image: it is a clip of one frame."""
        one = {"frames": 1, "stride": 1, "fps": None, "clips": 1, "every_seconds": None, "end": "repeat"}
        return self.model_copy(update=one)


@dataclass(frozen=True)
class Timeline:
    """When frames of a video are shown: sorted integer `pts`, and `end_pts`, when the last one goes.

    It may be a part of the video: `first_pts` is when the first frame of all is shown, and `ends` tells
    whether the video does where this does.
    """

    pts: np.ndarray
    end_pts: int
    time_base: Fraction
    first_pts: int | None = None
    ends: bool = True

    @property
    def origin_pts(self) -> int:
        return int(self.pts[0]) if self.first_pts is None else self.first_pts

    def seconds(self, pts: int) -> float:
        """Seconds since the first frame of the video was shown."""
        return float((pts - self.origin_pts) * self.time_base)


@dataclass(frozen=True)
class Reach:
    """The part of a video that some clips lie in, in seconds since its first frame.

    more_frames: how many frames after `end_seconds` are wanted, too.
    """

    start_seconds: float
    end_seconds: float
    more_frames: int = 1


@dataclass(frozen=True)
class Clip:
    """Frames of one clip as positions in the video's timeline, in the order they are shown."""

    index: int
    frames: np.ndarray
    padded_frames: int


def reach_of(
    sampling: Sampling,
    span_seconds: tuple[float | None, float | None] = (None, None),
    window: tuple[int, int | None] = (0, None),
) -> Reach | None:
    """The part of a video that `choose_clips` needs to know with the same arguments; None: all of it."""
    start, end = span_seconds[0] or 0.0, math.inf if span_seconds[1] is None else span_seconds[1]
    # A clip that loops needs the start again.
    if sampling.every_seconds is None or window == (0, None) or sampling.end == "loop":
        return None if math.isinf(end) else Reach(start, end)
    first = start + max(0, window[0] - 1) * sampling.every_seconds
    if window[1] is None:
        return Reach(first, end)
    last = start + window[1] * sampling.every_seconds
    if sampling.fps is not None:
        return Reach(first, min(end, last + sampling.frames / sampling.fps))
    assert sampling.stride is not None
    return Reach(first, last, sampling.frames * sampling.stride) if last < end else Reach(first, end)


def choose_clips(
    timeline: Timeline,
    sampling: Sampling,
    span_seconds: tuple[float | None, float | None] = (None, None),
    window: tuple[int, int | None] = (0, None),
) -> list[Clip]:
    """The clips of a video, or of a span of it, in order.

    Args:
        timeline: of all of the video, or of what `reach_of` says.
        span_seconds: annotated (start, end) in seconds since the first frame; None is the video's own.
        window: which of them, as (first, stop): a long video is read in several parts.

    Raises:
        MediaError: `too_short`, when there is no clip to take.
    """
    tick = timeline.time_base
    begin, end, ends = timeline.origin_pts, timeline.end_pts, timeline.ends
    if span_seconds[1] is not None and begin + _ticks(span_seconds[1], tick) < end:
        end, ends = begin + _ticks(span_seconds[1], tick), True
    if span_seconds[0] is not None:
        begin += _ticks(span_seconds[0], tick)
    first, stop = (int(i) for i in np.searchsorted(timeline.pts, [begin, end]))
    if first >= stop:
        if window[0]:
            return []  # the video is shorter than its header said
        until = "" if span_seconds[1] is None else f" to {span_seconds[1]:g} s"
        raise MediaError("too_short", f"no frame is shown from {span_seconds[0] or 0:g} s on{until}")
    if sampling.every_seconds is None:
        clips = _spread_out(timeline, sampling, first, stop, end)
    else:
        clips = _windows(timeline, sampling, first, stop, begin, end, ends, window)
    if sampling.end == "drop":
        clips = [clip for clip in clips if not clip.padded_frames]
    if not clips and not window[0]:
        raise MediaError(
            "too_short", f"{stop - first} frames do not fill a clip, and sampling.end is '{sampling.end}'"
        )
    return clips if sampling.every_seconds is not None else clips[window[0] : window[1]]


def count_windows(duration_seconds: float, every_seconds: float) -> int:
    """How many windows a video of about this length can have, at most."""
    return max(1, int(np.ceil(duration_seconds / every_seconds)))


def _ticks(seconds: float, tick: Fraction) -> int:
    return round(Fraction(seconds).limit_denominator(1_000_000) / tick)


def _spread(last: int, n: int) -> list[int]:
    """n whole numbers evenly spread over 0..last, both ends included; one is the middle."""
    return [last // 2] if n == 1 else [(j * last * 2 + n - 1) // (2 * (n - 1)) for j in range(n)]


def _spread_out(timeline: Timeline, sampling: Sampling, first: int, stop: int, end: int) -> list[Clip]:
    """`sampling.clips` clips from the first to the last."""
    assert sampling.clips is not None
    pts = timeline.pts[first:stop]
    if sampling.stride is not None:
        reach = (sampling.frames - 1) * sampling.stride
        starts = _spread(max(0, len(pts) - 1 - reach), sampling.clips)
        return [_by_stride(k, start, first, stop, sampling) for k, start in enumerate(starts)]
    begin, offsets = int(pts[0]), _offsets(timeline, sampling)
    starts = _spread(max(0, int(pts[-1]) - begin - int(offsets[-1])), sampling.clips)
    return [
        _by_time(k, begin + start, begin, end, pts, first, offsets, sampling)
        for k, start in enumerate(starts)
    ]


def _windows(
    timeline: Timeline,
    sampling: Sampling,
    first: int,
    stop: int,
    begin: int,
    end: int,
    ends: bool,
    window: tuple[int, int | None],
) -> list[Clip]:
    """A window every so many seconds from `begin` on, up to the first one that reaches the end."""
    every = Fraction(str(sampling.every_seconds)) / timeline.time_base
    pts = timeline.pts[first:stop]
    before = max(0, window[0] - 1)
    most = int((int(pts[-1]) - begin) / every) + 1
    stop_clip = most if window[1] is None else min(window[1], most)
    offsets = _offsets(timeline, sampling) if sampling.fps is not None else None
    clips = []
    for k in range(before, stop_clip):
        time = begin + round(k * every)
        if offsets is None:
            assert sampling.stride is not None
            start = int(np.searchsorted(pts, time))
            covered = start >= len(pts) - 1 - (sampling.frames - 1) * sampling.stride
        else:
            covered = time + int(offsets[-1]) >= int(pts[-1])
        if k >= window[0]:
            if offsets is None:
                clips.append(_by_stride(k, start, first, stop, sampling))
            else:
                clips.append(_by_time(k, time, begin, end, pts, first, offsets, sampling))
        if covered and ends:
            break  # later ones would show nothing new
    return clips


def _by_stride(index: int, start: int, first: int, stop: int, sampling: Sampling) -> Clip:
    """The clip from the `start`-th frame of [first, stop) on, every so many frames."""
    assert sampling.stride is not None
    count = stop - first
    frames = start + np.arange(sampling.frames, dtype=np.int64) * sampling.stride
    padded = int((frames >= count).sum())
    frames = frames % count if sampling.end == "loop" else np.minimum(frames, count - 1)
    return Clip(index, first + frames, padded)


def _by_time(
    index: int,
    start: int,
    begin: int,
    end: int,
    pts: np.ndarray,
    first: int,
    offsets: np.ndarray,
    sampling: Sampling,
) -> Clip:
    """The clip of what is shown at pts `start` and every so many seconds later, within [begin, end)."""
    times = start + offsets
    padded = int((times >= end).sum())
    if sampling.end == "loop":
        times = begin + (times - begin) % (end - begin)
    frames = np.maximum(np.searchsorted(pts, times, side="right") - 1, 0)
    return Clip(index, first + frames, padded)


def _offsets(timeline: Timeline, sampling: Sampling) -> np.ndarray:
    """When each frame of a clip is shown, in ticks after the first."""
    step = 1 / (Fraction(str(sampling.fps)) * timeline.time_base)
    # Rounded to the nearest tick: containers store rounded timestamps (Matroska to the millisecond).
    return np.array([round(i * step) for i in range(sampling.frames)], dtype=np.int64)
