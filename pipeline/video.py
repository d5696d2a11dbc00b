"""The clips of a video or image file, by presentation timestamp: one pass for all of them.

A frame leaves the codec straight at the size of its canvas, and only if the plan touches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from pipeline.errors import MediaError
from pipeline.frames import Video, probe
from pipeline.picture import Converter
from pipeline.plan import CHANNELS, Canvas, Plan
from pipeline.sampling import Clip, Sampling, Timeline, choose_clips
from pipeline.storage import Location

__all__ = ["Lost", "Pixels", "Video", "probe", "read_clips"]


@dataclass(frozen=True)
class Pixels:
    """One view of one clip, ready to be cut. `frames` is reused: cut it before asking for the next one."""

    clip: Clip
    crop_index: int
    crop: tuple[int, int, int, int]  # top, left, height, width in pixels of the stored picture
    frames: dict[Canvas, np.ndarray]  # uint8 (canvas.frames, h, w, 3)
    pts: np.ndarray  # int64 (sampling.frames,)
    time_base: Fraction
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class Lost:
    """One clip that the file could not give."""

    clip: int | None
    error: MediaError


def read_clips(
    location: Location,
    sampling: Sampling,
    plan: Plan,
    span_seconds: tuple[float | None, float | None] = (None, None),
    window: tuple[int, int | None] = (0, None),
) -> Iterator[Pixels | Lost]:
    """All clips of one file in one pass, in order of their last frame; crops of a clip follow each other.

    Args:
        plan: which canvases to fill, and which of their frames; the others are left undefined.
        span_seconds, window: see `choose_clips`.

    Raises:
        MediaError: the file gives no clip at all.
    """
    with Video(location) as video:
        clips = choose_clips(video.timeline, sampling, span_seconds, window)
        rows = {canvas: {t: t // canvas.step for t in plan.frames_of(canvas)} for canvas in plan.canvases}
        touched = sorted(set().union(*rows.values()))
        uses: dict[int, list[tuple[_Filling, int]]] = {}
        for clip in clips:
            filling = _Filling(clip, len(touched))
            for t in touched:
                uses.setdefault(int(clip.frames[t]), []).append((filling, t))
        converter = Converter(video.sample_aspect_ratio)
        spare: list[dict[Canvas, np.ndarray]] = []
        for position, frame in video.frames(sorted(uses)):
            # A frame that several clips show, or one clip several times, is converted once.
            pictures: dict[tuple[int, Canvas], np.ndarray] = {}
            for filling, t in uses.pop(position):
                filling.left -= 1
                if frame is None:
                    filling.lost_at = position if filling.lost_at is None else filling.lost_at
                elif filling.lost_at is None:
                    if not filling.views:
                        boxes = [converter.box(frame, sampling, k) for k in range(sampling.crops)]
                        filling.views = [
                            _blank(filling.clip, k, box, video.timeline, plan, spare)
                            for k, box in enumerate(boxes)
                        ]
                    for view in filling.views:
                        for canvas in (canvas for canvas in rows if t in rows[canvas]):
                            key = (view.crop_index, canvas)
                            if key not in pictures:
                                pictures[key] = converter.picture(frame, canvas, sampling, view.crop_index)
                            view.frames[canvas][rows[canvas][t]] = pictures[key]
                if not filling.left:
                    yield from _finished(filling, video.timeline)
                    spare.extend(view.frames for view in filling.views)
        if video.tail_error is not None and window[1] is None:
            seconds = video.timeline.seconds(video.timeline.end_pts)
            yield Lost(None, MediaError("corrupt", f"cannot be read further: {video.tail_error}", seconds))


@dataclass
class _Filling:
    """A clip whose frames are coming in: how many are still to come, and where one was missing."""

    clip: Clip
    left: int
    views: list[Pixels] = field(default_factory=list)
    lost_at: int | None = None


def _finished(filling: _Filling, timeline: Timeline) -> Iterator[Pixels | Lost]:
    if filling.lost_at is None:
        yield from filling.views
    else:
        seconds = timeline.seconds(int(timeline.pts[filling.lost_at]))
        yield Lost(filling.clip.index, MediaError("corrupt", "a frame cannot be decoded", seconds))


def _blank(
    clip: Clip,
    crop_index: int,
    crop: tuple[int, int, int, int],
    timeline: Timeline,
    plan: Plan,
    spare: list[dict[Canvas, np.ndarray]],
) -> Pixels:
    """A view with nothing in it yet, in memory that an earlier one has left, if there is some."""
    if spare:
        frames = spare.pop()
    else:
        frames = {c: np.zeros((c.frames, *c.frame_size, CHANNELS), np.uint8) for c in plan.canvases}
    pts = timeline.pts[clip.frames]
    last = int(clip.frames.max()) + 1
    end = int(timeline.pts[last]) if last < len(timeline.pts) else timeline.end_pts
    return Pixels(
        clip,
        crop_index,
        crop,
        frames,
        pts,
        timeline.time_base,
        timeline.seconds(int(pts.min())),
        timeline.seconds(end),
    )
