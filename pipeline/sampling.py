"""Which frames of a video make its clips. Pure integer arithmetic on presentation timestamps."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from pipeline.errors import MediaError
from pipeline.plan import Filter, Frozen


class Sampling(Frozen):
    """How clips are taken from a video, and at which size.

    frames: sampled frames of a clip.
    stride | fps: every `stride`-th frame of the video, or `fps` frames a second by timestamp.
    clips | every_seconds: that many clips evenly spread from the first to the last (one: the middle), or a
        window that starts every so many seconds until the end is covered.
    crops: 1 (centre) or 3 (both ends and the centre of the longer side); the short side always fits.
    end: what fills a clip that reaches past the end: the last frame repeated, the video from its start
        again, or nothing, in which case that clip is dropped.
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
    end: Literal["repeat", "loop", "drop"] = "repeat"

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.stride is not None and self.fps is not None:
            raise ValueError("stride and fps exclude each other; keep one")
        if self.clips is not None and self.every_seconds is not None:
            raise ValueError("clips and every_seconds exclude each other; keep one")
        if self.stride is None and self.fps is None:
            object.__setattr__(self, "stride", 2)
        if self.clips is None and self.every_seconds is None:
            object.__setattr__(self, "clips", 1)
        return self


@dataclass(frozen=True)
class Timeline:
    """When each frame of a video is shown: sorted integer `pts`, and `end_pts`, when the last one goes."""

    pts: np.ndarray
    end_pts: int
    time_base: Fraction

    def seconds(self, pts: int) -> float:
        """Seconds since the first frame was shown."""
        return float((pts - int(self.pts[0])) * self.time_base)


@dataclass(frozen=True)
class Clip:
    """Frames of one clip as positions in the video's timeline, in the order they are shown."""

    index: int
    frames: np.ndarray
    padded_frames: int


def choose_clips(
    timeline: Timeline,
    sampling: Sampling,
    span_seconds: tuple[float | None, float | None] = (None, None),
    window: tuple[int, int | None] = (0, None),
) -> list[Clip]:
    """The clips of a video, or of a span of it, in order.

    Args:
        span_seconds: annotated (start, end) in seconds since the first frame; None is the video's own.
        window: which of them, as (first, stop): a long video is read in several parts.

    Raises:
        MediaError: `too_short`, when there is no clip to take.
    """
    tick = timeline.time_base
    begin, end = int(timeline.pts[0]), timeline.end_pts
    if span_seconds[1] is not None:
        end = min(end, begin + _ticks(span_seconds[1], tick))
    if span_seconds[0] is not None:
        begin += _ticks(span_seconds[0], tick)
    first, stop = (int(i) for i in np.searchsorted(timeline.pts, [begin, end]))
    if first >= stop:
        raise MediaError(
            "too_short", f"no frame is shown between {span_seconds[0]} s and {span_seconds[1]} s"
        )
    if sampling.fps is None:
        clips = _by_stride(timeline, sampling, first, stop)
    else:
        clips = _by_time(timeline, sampling, first, stop, end)
    if not clips:
        raise MediaError(
            "too_short", f"{stop - first} frames do not fill a clip, and sampling.end is '{sampling.end}'"
        )
    return clips[window[0] : window[1]]


def count_windows(duration_seconds: float, every_seconds: float) -> int:
    """How many windows a video of about this length can have, at most."""
    return max(1, int(np.ceil(duration_seconds / every_seconds)))


def _ticks(seconds: float, tick: Fraction) -> int:
    return round(Fraction(seconds).limit_denominator(1_000_000) / tick)


def _spread(last: int, n: int) -> list[int]:
    """n whole numbers evenly spread over 0..last, both ends included; one is the middle."""
    return [last // 2] if n == 1 else [(j * last * 2 + n - 1) // (2 * (n - 1)) for j in range(n)]


def _by_stride(timeline: Timeline, sampling: Sampling, first: int, stop: int) -> list[Clip]:
    assert sampling.stride is not None
    count = stop - first
    reach = (sampling.frames - 1) * sampling.stride
    if sampling.clips is not None:
        starts = _spread(max(0, count - 1 - reach), sampling.clips)
    else:
        assert sampling.every_seconds is not None
        pts = timeline.pts[first:stop]
        every = Fraction(sampling.every_seconds).limit_denominator(1_000_000) / timeline.time_base
        times = int(pts[0]) + _multiples(every, int(pts[-1] - pts[0]))
        starts = [int(i) for i in np.searchsorted(pts, times)]
        starts = _until_covered(starts, count - 1 - reach)
    offsets = np.arange(sampling.frames, dtype=np.int64) * sampling.stride
    clips = []
    for index, start in enumerate(starts):
        frames, past = start + offsets, start + offsets >= count
        frames = frames % count if sampling.end == "loop" else np.minimum(frames, count - 1)
        clips.append(Clip(index, first + frames, int(past.sum())))
    return _fitting(clips, sampling)


def _by_time(timeline: Timeline, sampling: Sampling, first: int, stop: int, end: int) -> list[Clip]:
    assert sampling.fps is not None
    pts = timeline.pts[first:stop]
    begin = int(pts[0])
    step = 1 / (Fraction(sampling.fps).limit_denominator(1_000_000) * timeline.time_base)
    # Rounded to the nearest tick: containers store rounded timestamps (Matroska to the millisecond).
    offsets = np.array([round(i * step) for i in range(sampling.frames)], dtype=np.int64)
    last = int(pts[-1]) - begin - int(offsets[-1])
    if sampling.clips is not None:
        starts = _spread(max(0, last), sampling.clips)
    else:
        assert sampling.every_seconds is not None
        every = Fraction(sampling.every_seconds).limit_denominator(1_000_000) / timeline.time_base
        starts = [int(t) for t in _multiples(every, int(pts[-1]) - begin)]
        starts = _until_covered(starts, last)
    clips = []
    for index, start in enumerate(starts):
        times = start + offsets
        past = times >= end - begin
        if sampling.end == "loop":
            times = times % (end - begin)
        frames = np.searchsorted(pts, begin + times, side="right") - 1
        clips.append(Clip(index, first + frames, int(past.sum())))
    return _fitting(clips, sampling)


def _multiples(every: Fraction, last: int) -> np.ndarray:
    """0, every, 2 every, ... up to `last`, each rounded to a whole tick."""
    count = int(last / every) + 1
    return np.array([round(k * every) for k in range(count)], dtype=np.int64)


def _until_covered(starts: list[int], last: int) -> list[int]:
    """Windows up to the first one that reaches the end: later ones would show nothing new."""
    for k, start in enumerate(starts):
        if start >= last:
            return starts[: k + 1]
    return starts


def _fitting(clips: list[Clip], sampling: Sampling) -> list[Clip]:
    return [clip for clip in clips if not clip.padded_frames] if sampling.end == "drop" else clips
