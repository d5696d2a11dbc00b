"""The clips of a video or image file, by presentation timestamp: one pass for all of them.

A frame leaves the codec straight at the size of its canvas, and only if the plan touches it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from pipeline.errors import MediaError
from pipeline.frames import Shot, Video
from pipeline.limits import Hardware, Limits
from pipeline.media import probe
from pipeline.picture import Converter
from pipeline.plan import CHANNELS, Canvas, Plan
from pipeline.sampling import Clip, Sampling, choose_clips, reach_of
from pipeline.storage import Location

__all__ = ["Lost", "Pixels", "Video", "probe", "read_clips", "read_view"]


@dataclass
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
    damaged_frames: int = 0  # of those that the plan touches; 0 unless `sampling.corrupt` is "keep"


@dataclass(frozen=True)
class Lost:
    """One clip that the file could not give."""

    clip: int | None
    error: MediaError


@dataclass
class Tally:
    """What reading has cost."""

    frames: int = 0  # that decoders gave out, also those that no clip shows


def read_clips(
    location: Location,
    sampling: Sampling,
    plan: Plan,
    span_seconds: tuple[float | None, float | None] = (None, None),
    window: tuple[int, int | None] = (0, None),
    limits: Limits | None = None,
    hardware: Hardware | None = None,
    tally: Tally | None = None,
) -> Iterator[Pixels | Lost]:
    """All clips of one file in one pass, in order of their last frame; crops of a clip follow each other.

    Memory is bounded by the clips that overlap and the canvases, and by eight bytes a frame of the file.

    Args:
        plan: which canvases to fill, and which of their frames; the others are left undefined.
        span_seconds, window: see `choose_clips`.
        tally: what this costs is added to it in the end.

    Raises:
        MediaError: the file gives no clip at all.
    """
    reach = reach_of(sampling, span_seconds, window)
    with Video(location, limits, reach, sampling.corrupt == "keep", hardware) as video:
        if sampling.corrupt == "fail_file":
            video.check()
        clips = choose_clips(video.timeline, sampling, span_seconds, window)
        desk = _Desk(video, location.path.rpartition("/")[2], sampling, plan, clips, range(sampling.views))
        try:
            for shot in video.frames(desk.positions):
                yield from desk.take(shot)
        finally:
            if tally is not None:
                tally.frames += video.decoded
        if video.tail_error is not None and window[1] is None:
            seconds = video.timeline.seconds(video.timeline.end_pts)
            yield Lost(None, MediaError("corrupt", f"cannot be read further: {video.tail_error}", seconds))


def read_view(
    location: Location,
    sampling: Sampling,
    plan: Plan,
    pick: Callable[[int], int],
    span_seconds: tuple[float | None, float | None] = (None, None),
    limits: Limits | None = None,
) -> Pixels:
    """One of the views that `read_clips` gives of a file, and no other is decoded.

    Args:
        pick: is told how many there are, all crops of a clip one after the other, and says which.

    Raises:
        MediaError: the file does not give this one.
    """
    with Video(location, limits, reach_of(sampling, span_seconds), sampling.corrupt == "keep") as video:
        if sampling.corrupt == "fail_file":
            video.check()
        clips = choose_clips(video.timeline, sampling, span_seconds)
        clip, crop = divmod(pick(len(clips) * sampling.views), sampling.views)
        name, crops = location.path.rpartition("/")[2], range(crop, crop + 1)
        desk = _Desk(video, name, sampling, plan, [clips[clip]], crops)
        found = next(view for shot in video.frames(desk.positions) for view in desk.take(shot))
    if isinstance(found, Lost):
        raise found.error
    return found


@dataclass
class _Filling:
    """A clip whose frames are coming in: how many are still to come, and what it was lost by."""

    clip: Clip
    left: int
    views: list[Pixels] = field(default_factory=list)
    lost: MediaError | None = None
    damaged: int = 0


class _Desk:
    """Where clips are put together: frames come in order, and clips leave when they are full."""

    def __init__(
        self, video: Video, name: str, sampling: Sampling, plan: Plan, clips: Sequence[Clip], crops: range
    ) -> None:
        self._crops = crops
        self._timeline, self._sampling, self._plan = video.timeline, sampling, plan
        # Of each canvas: where the clip's frames go that the plan touches.
        self._rows = [(c, {t: t // c.step for t in plan.frames_of(c)}) for c in plan.canvases]
        self._touched = np.array(sorted(set().union(*(rows for _, rows in self._rows))))
        self._converter = Converter(video.sample_aspect_ratio, name)
        self._waiting = deque(sorted(clips, key=self._first))
        # By position: the clips that show the frame there, and as which of theirs.
        self._uses: dict[int, list[tuple[_Filling, int]]] = {}
        self._spare: list[dict[Canvas, np.ndarray]] = []
        touched = [clip.frames[self._touched] for clip in clips]
        self.positions = np.unique(np.concatenate(touched)) if touched else np.empty(0, np.int64)

    def _first(self, clip: Clip) -> int:
        return int(clip.frames[self._touched].min())

    def take(self, shot: Shot) -> Iterator[Pixels | Lost]:
        """Convert a frame once for each canvas and crop it is part of; yield the clips it completes."""
        while self._waiting and self._first(self._waiting[0]) <= shot.position:
            filling = _Filling(self._waiting.popleft(), len(self._touched))
            for t in self._touched:
                self._uses.setdefault(int(filling.clip.frames[t]), []).append((filling, int(t)))
        pictures: dict[tuple[int, int], np.ndarray] = {}
        for filling, t in self._uses.pop(shot.position):
            filling.left -= 1
            filling.damaged += shot.damaged
            if filling.lost is None:
                try:
                    self._fill(filling, t, shot, pictures)
                except MediaError as error:
                    seconds = self._timeline.seconds(int(self._timeline.pts[shot.position]))
                    filling.lost = MediaError(error.reason, str(error), seconds)
            if not filling.left:
                yield from self._finished(filling)
                self._spare.extend(view.frames for view in filling.views)

    def _fill(
        self, filling: _Filling, t: int, shot: Shot, pictures: dict[tuple[int, int], np.ndarray]
    ) -> None:
        """Put a frame into its places in all views of a clip, as the `t`-th that was sampled."""
        if shot.frame is None:
            raise MediaError("corrupt", "a frame cannot be decoded")
        for view in self._views(filling, shot):
            for number, ((canvas, rows), pixels) in enumerate(
                zip(self._rows, view.frames.values(), strict=True)
            ):
                if t not in rows:
                    continue
                key = (view.crop_index, number)
                if key not in pictures:
                    pictures[key] = self._converter.picture(
                        shot.frame, canvas, self._sampling, view.crop_index
                    )
                pixels[rows[t]] = pictures[key]

    def _views(self, filling: _Filling, shot: Shot) -> list[Pixels]:
        if not filling.views:
            assert shot.frame is not None
            boxes = [self._converter.box(shot.frame, self._sampling, k) for k in self._crops]
            filling.views = [
                self._blank(filling.clip, k, box) for k, box in zip(self._crops, boxes, strict=True)
            ]
        return filling.views

    def _finished(self, filling: _Filling) -> Iterator[Pixels | Lost]:
        if filling.lost is not None:
            yield Lost(filling.clip.index, filling.lost)
            return
        for view in filling.views:
            view.damaged_frames = filling.damaged
            yield view

    def _blank(self, clip: Clip, crop_index: int, crop: tuple[int, int, int, int]) -> Pixels:
        """A view with nothing in it yet, in memory that an earlier one has left, if there is some."""
        line = self._timeline
        if self._spare:
            frames = self._spare.pop()
        else:
            canvases = self._plan.canvases
            frames = {c: np.zeros((c.frames, *c.frame_size, CHANNELS), np.uint8) for c in canvases}
        pts = line.pts[clip.frames]
        last = int(clip.frames.max()) + 1
        end = int(line.pts[last]) if last < len(line.pts) else line.end_pts
        start_seconds = line.seconds(int(pts.min()))
        return Pixels(clip, crop_index, crop, frames, pts, line.time_base, start_seconds, line.seconds(end))
