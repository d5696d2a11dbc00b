"""What there is to see of one clip: the images that its tubes are cut from, and where those come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pipeline.cut import cut
from pipeline.errors import MediaError
from pipeline.picture import orientation
from pipeline.plan import CHANNELS, Canvas, Plan, Tube
from pipeline.sampling import Sampling, Timeline
from pipeline.storage import Location
from pipeline.video import Pixels, Video, probe, read_clips

WHOLE_PX = 480  # the longer side of the uncropped frame
OUTLINE = (213, 94, 0)


@dataclass(frozen=True)
class Panel:
    """One image of a canvas, uint8 (H, W, 3): what it is, and what is to be noted of it.

    touched: whether a tube looks at it; what none looks at is never decoded to pixels in a run.
    """

    image: np.ndarray
    label: str
    note: str
    touched: bool


@dataclass(frozen=True)
class Scene:
    """One clip.

    whole: a frame of it, uncropped, as a viewer sees it, with the outline of the crop.
    frames: for each canvas uint8 (canvas.frames, h, w, 3), as `cut` takes them.
    labels: of every sampled frame, what and when it is.
    """

    facts: tuple[str, ...]
    whole: Image.Image
    panels: dict[Canvas, tuple[Panel, ...]]
    frames: Mapping[Canvas, np.ndarray]
    labels: tuple[str, ...]


def read_scene(
    location: Location,
    sampling: Sampling,
    plan: Plan,
    clip: int = 0,
    span_seconds: tuple[float | None, float | None] = (None, None),
) -> Scene:
    """Read one clip of a file as a run does, and the frames that its plan passes over as well.

    Args:
        clip: which of the clips that `sampling` takes.
        span_seconds: see `choose_clips`.

    Raises:
        MediaError: the file does not give that clip.
    """
    every = Plan(tubes=tuple(_all_of(canvas, f"canvas_{i}") for i, canvas in enumerate(plan.canvases)))
    try:
        view = _view(location, sampling, every, clip, span_seconds)
    except MediaError:
        # What no tube touches may be broken, and a run does not see that: then it stays black.
        view = _view(location, sampling, plan, clip, span_seconds)
    images = cut(view.frames, every)
    with Video(location) as video:
        panels = {
            tube.canvas: _panels(tube.canvas, images[tube.name], plan, view, video.timeline, sampling)
            for tube in every.tubes
        }
        facts = _facts(location, video, view, plan, sampling)
        labels = tuple(_label([t], view, video.timeline) for t in range(len(view.pts)))
        return Scene(facts, _whole(video, view, plan), panels, view.frames, labels)


def _view(
    location: Location,
    sampling: Sampling,
    plan: Plan,
    clip: int,
    span_seconds: tuple[float | None, float | None],
) -> Pixels:
    for view in list(read_clips(location, sampling, plan, span_seconds, (clip, clip + 1))):
        if isinstance(view, Pixels):
            return view
        raise view.error
    raise MediaError("too_short", f"it has no clip {clip}")


def _all_of(canvas: Canvas, name: str) -> Tube:
    size = (1, *canvas.shape[1:])
    return Tube(name=name, kernel=size, stride=size, canvas=canvas)


def _panels(
    canvas: Canvas, images: np.ndarray, plan: Plan, view: Pixels, line: Timeline, sampling: Sampling
) -> tuple[Panel, ...]:
    """images: uint8 (T, ..., H, W, 3); line: of all of the file, where `view.clip` may count from a part."""
    touched, per_image = set(plan.frames_of(canvas)), canvas.tiles[0] * canvas.tiles[1]
    real = len(view.pts) - view.clip.padded_frames
    panels = []
    for i, image in enumerate(images.reshape(*canvas.shape, CHANNELS)):
        shown = [(i * per_image + k) * canvas.step for k in range(per_image)]
        notes = [] if shown[0] in touched else ["not decoded to pixels"]
        if padded := sum(t >= real for t in shown):
            share = f"{padded} of {per_image} " if per_image > 1 else ""
            notes.append(f"{share}past the end, {'looped' if sampling.end == 'loop' else 'repeated'}")
        panels.append(Panel(image, _label(shown, view, line), "; ".join(notes), shown[0] in touched))
    return tuple(panels)


def _label(shown: Sequence[int], view: Pixels, line: Timeline) -> str:
    """Of consecutive sampled frames: which, when, and where in the file."""
    numbers = np.searchsorted(line.pts, view.pts[list(shown)])
    seconds = [f"{line.seconds(int(view.pts[t])):.3f}" for t in shown]
    return f"{_ends(shown)}    {_ends(seconds)} s    frame {_ends(list(numbers))}"


def _ends(values: Sequence[object]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _whole(video: Video, view: Pixels, plan: Plan) -> Image.Image:
    """The middle one of the frames that the plan touches."""
    touched = sorted({t for canvas in plan.canvases for t in plan.frames_of(canvas)})
    pts = view.pts[touched[len(touched) // 2]]
    (shot,) = video.frames([int(np.searchsorted(video.timeline.pts, pts))])
    if shot.frame is None:
        raise MediaError("corrupt", "a frame cannot be decoded", video.timeline.seconds(int(pts)))
    stored = Image.fromarray(shot.frame.to_ndarray(format="rgb24"))
    width = float(stored.width * video.sample_aspect_ratio)
    scale = WHOLE_PX / max(width, stored.height)
    seen = stored.resize((max(1, round(width * scale)), max(1, round(stored.height * scale))))
    across, down = seen.width / stored.width, seen.height / stored.height
    top, left, crop_height, crop_width = view.crop
    box = (left * across, top * down, (left + crop_width) * across - 1, (top + crop_height) * down - 1)
    ImageDraw.Draw(seen).rectangle(box, outline=OUTLINE, width=4)
    return Image.fromarray(np.ascontiguousarray(orientation(shot.frame).apply(np.asarray(seen))))


def _facts(location: Location, video: Video, view: Pixels, plan: Plan, sampling: Sampling) -> tuple[str, ...]:
    header, line = probe(location), video.timeline
    top, left, height, width = view.crop
    pixels = sum(canvas.frames * canvas.frame_size[0] * canvas.frame_size[1] for canvas in plan.canvases)
    facts = [f"{header.codec}, {header.width_px} x {header.height_px} px"]
    if len(line.pts) > 1 or len(view.pts) > 1:  # an image has no times
        pace = f"stride {sampling.stride}" if sampling.fps is None else f"{sampling.fps:g} a second"
        span = f"{view.start_seconds:.3f} s to {view.end_seconds:.3f} s"
        facts[0] += f", {line.seconds(line.end_pts):.3f} s, frames: {len(line.pts)}"
        facts.append(f"clip {view.clip.index} (of {sampling.clips}), {span}, frames: {len(view.pts)}, {pace}")
    return (
        *facts,
        f"crop (outlined): {width} x {height} px at x {left}, y {top} of the picture as stored",
        f"plan {plan.digest}: {plan.tokens:,} tokens, {plan.bytes_per_clip:,} bytes a clip "
        f"(its frames: {pixels * CHANNELS:,})",
    )
