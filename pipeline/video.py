"""The clips of a video or image file, by presentation timestamp: one pass for all of them.

A frame leaves the codec straight at the size of its canvas, and only if the plan touches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
        slots = {canvas: plan.frames_of(canvas) for canvas in plan.canvases}
        touched = sorted({t for ts in slots.values() for t in ts})
        uses: dict[int, list[tuple[Clip, int]]] = {}
        for clip in clips:
            for t in touched:
                uses.setdefault(int(clip.frames[t]), []).append((clip, t))
        row_of = {canvas: {t: t // canvas.step for t in ts} for canvas, ts in slots.items()}
        left = {clip.index: len(touched) for clip in clips}
        views: dict[int, list[Pixels]] = {}
        spare: list[dict[Canvas, np.ndarray]] = []
        missing: dict[int, int] = {}
        converter = Converter(video.sample_aspect_ratio)
        for position, frame in video.frames(sorted(uses)):
            for clip, t in uses.pop(position):
                if frame is None:
                    missing.setdefault(clip.index, position)
                elif clip.index not in missing:
                    if clip.index not in views:
                        views[clip.index] = [
                            _blank(clip, k, video.timeline, plan, spare, converter.box(frame, sampling, k))
                            for k in range(sampling.crops)
                        ]
                    for pixels in views[clip.index]:
                        for canvas, rows in row_of.items():
                            if t in rows:
                                target = pixels.frames[canvas][rows[t]]
                                converter.write(frame, canvas, sampling, pixels.crop_index, target)
                left[clip.index] -= 1
                if left[clip.index]:
                    continue
                done = views.pop(clip.index, [])
                if clip.index in missing:
                    seconds = video.timeline.seconds(int(video.timeline.pts[missing[clip.index]]))
                    yield Lost(clip.index, MediaError("corrupt", "a frame cannot be decoded", seconds))
                else:
                    yield from done
                spare.extend(pixels.frames for pixels in done)
        if video.tail_error is not None and window[1] is None:
            seconds = video.timeline.seconds(video.timeline.end_pts)
            yield Lost(None, MediaError("corrupt", f"cannot be read further: {video.tail_error}", seconds))


def _blank(
    clip: Clip,
    crop_index: int,
    timeline: Timeline,
    plan: Plan,
    spare: list[dict[Canvas, np.ndarray]],
    crop: tuple[int, int, int, int],
) -> Pixels:
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
