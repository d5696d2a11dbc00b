"""`tubelet inspect`: a clip on one page, its frames, and on them the footprint of every tube of a plan."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import models
from jobs import page, pictures
from jobs.page import ALERT, GAP_PX, INK, LABEL_PX, MOST_PX, TEXT_PX, TITLE_PX, WHITE, Colour
from jobs.scene import Panel, Scene, read_scene
from pipeline.errors import MediaError, SpecError, SpecListError, StorageError
from pipeline.plan import Canvas, Plan, Tube
from pipeline.sampling import Sampling
from pipeline.storage import locate, write_atomic
from pipeline.tables import IMAGE_SUFFIXES, suffix_of

# Told apart with any colour vision (Okabe and Ito); the bright ones first, which stand out from pictures.
COLOURS: tuple[Colour, ...] = (
    (86, 180, 233), (230, 159, 0), (240, 228, 66), (204, 121, 167), (0, 158, 115), (213, 94, 0),
    (0, 114, 178),
)  # fmt: skip
FILL = 0.25  # the share of its colour in a footprint
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MOST_FRAMES, MOST_PIXELS = 512, 1 << 27  # of a clip: more is no page that anyone could look at


def inspect(
    video: str,
    model: str | None,
    output: str,
    sampling: Sampling,
    clip: int | None = None,
    span_seconds: tuple[float | None, float | None] = (None, None),
    checkpoint: str | None = None,
) -> dict[str, Image.Image]:
    """Draw one clip of a video, or an image, into the file `output`; the files and what is in them.

    Args:
        model: its name; may be left out with a checkpoint, which knows it.
        sampling: with `clips`.
        clip: which of them; None: the middle one.
        span_seconds: see `choose_clips`.
        checkpoint: a folder that training wrote; then its kernels and its attention are drawn as well, into
            files beside `output`: a page of each, as one of all would be too high to be looked at.

    Raises:
        SpecError: what is asked for cannot be drawn; it names the option of the command that asks for it.
    """
    if suffix_of(output) not in FORMATS:
        raise SpecError("--output", output, f"its name must end with one of {', '.join(FORMATS)}")
    kinds = ("", "-kernels", "-attention") if checkpoint is not None else ("",)
    outputs = [f"{output.removesuffix(suffix := Path(output).suffix)}{kind}{suffix}" for kind in kinds]
    place = locate(video, "VIDEO")
    if place in [locate(name, "--output") for name in outputs]:
        raise SpecError("--output", output, "this is the input; give the drawing a name of its own")
    size = (sampling.height_px, sampling.width_px)
    if sampling.frames > MOST_FRAMES or sampling.frames * size[0] * size[1] > MOST_PIXELS:
        most = f"draw at most {MOST_FRAMES} frames, of {MOST_PIXELS:,} pixels together"
        raise SpecError("--frames", sampling.frames, f"too many of {size[0]}x{size[1]}; {most}")
    options: models.Options = {"frames": sampling.frames, "size": size, "filter": sampling.filter}
    if checkpoint is not None:
        config = pictures.stored(checkpoint, model)
        model, options = config.name, {**config.options(), **options}
    elif model is None:
        raise SpecError("--model", None, "name a model (`tubelet models` lists them), or give a --checkpoint")
    try:
        plan, image_plan = models.plan(model, **options), models.image_plan(model, **options)
        if checkpoint is not None:
            models.check(model, checkpoint=checkpoint, **options)
    except (ValueError, OSError) as error:
        raise SpecListError([_in_options(str(error), checkpoint)]) from None
    if suffix_of(video) in IMAGE_SUFFIXES:
        if image_plan is None:
            raise SpecError("--model", model, "it has no plan for images; give it a video")
        still = {"frames": 1, "stride": 1, "fps": None, "clips": 1, "end": "repeat"}
        plan, sampling = image_plan, sampling.model_copy(update=still)
    assert sampling.clips is not None
    clip = sampling.clips // 2 if clip is None else clip
    if not 0 <= clip < sampling.clips:
        raise SpecError("--clip", clip, f"clips are numbered 0 to {sampling.clips - 1}; --clips takes more")
    _check_span(*span_seconds)
    try:
        scene = read_scene(place, sampling, plan, clip, span_seconds)
    except MediaError as error:
        at = error.position_seconds
        part = "" if at is None else f" at {at:.3f} s; --start-seconds and --end-seconds choose another part"
        raise SpecError("VIDEO", video, f"{error}{part}") from None
    title = f"{place.path.rpartition('/')[2]}    {model}"
    drawn = [draw(scene, plan, title)]
    if checkpoint is not None:
        try:
            learned = models.create(model, checkpoint=checkpoint, **options)
        except (ValueError, OSError) as error:
            raise SpecListError([_in_options(str(error), checkpoint)]) from None
        title = f"{title}    {checkpoint}"
        drawn.append(pictures.draw_kernels(learned, title))
        drawn.append(pictures.draw_attention(scene, plan, learned, title))
    pages = dict(zip(outputs, drawn, strict=True))
    for name, image in pages.items():
        _write(name, image)
    return pages


def _in_options(text: str, checkpoint: str | None) -> str:
    """What `models` finds wrong, with the option of the command that says so."""
    option = re.match(r"(?:model\.)?(name|frames|size|filter|checkpoint)\b", text)
    if option is not None:
        return f"--{option[1].replace('name', 'model')}{text[option.end() :]}"
    return text if checkpoint is None else f"--checkpoint = {checkpoint!r}: {text}"


def _write(output: str, image: Image.Image) -> None:
    data = io.BytesIO()
    image.save(data, FORMATS[suffix_of(output)], quality=90)
    try:
        write_atomic(locate(output, "--output"), data.getvalue())
    except StorageError as error:
        reason = getattr(error.__cause__, "strerror", None) or " ".join(str(error.__cause__).split())
        raise SpecError("--output", output, f"cannot be written to ({reason})") from None


def draw(scene: Scene, plan: Plan, title: str) -> Image.Image:
    """The whole page: facts and a legend of the tubes, and below the images of each canvas in order."""
    colours = {tube: COLOURS[i % len(COLOURS)] for i, tube in enumerate(plan.tubes)}
    about = page.column([page.text([title], TITLE_PX), page.text(scene.facts, TEXT_PX), _legend(colours)])
    blocks = [page.row([scene.whole, about], 3 * GAP_PX)]
    for canvas, panels in scene.panels.items():
        own = {tube: colour for tube, colour in colours.items() if tube.canvas == canvas}
        blocks.append(page.column([page.text([_name(canvas)], TEXT_PX), _grid(panels, own)]))
    return page.framed(blocks)


def paint(image: np.ndarray, at: int, colours: dict[Tube, Colour], scale: int = 1) -> np.ndarray:
    """Image `at` of a canvas with its tubes' footprints, small ones on top: uint8 (scale H, scale W, 3).

    A place is outlined and lightly filled; once, however many tubes of one kind follow each other there.
    """
    drawn = image.repeat(scale, axis=0).repeat(scale, axis=1)
    for tube in sorted(colours, key=lambda tube: tube.kernel[1] * tube.kernel[2], reverse=True):
        if not any(start <= at < start + tube.kernel[0] for start in tube.origins[0]):
            continue
        height, width = tube.kernel[1] * scale, tube.kernel[2] * scale
        inside, edge = np.zeros((2, *drawn.shape[:2]), bool)
        for top in (h * scale for h in tube.origins[1]):
            for left in (w * scale for w in tube.origins[2]):
                inside[top : top + height, left : left + width] = True
                edge[[top, top + height - 1], left : left + width] = True
                edge[top : top + height, [left, left + width - 1]] = True
        drawn[inside] = np.rint((1 - FILL) * drawn[inside] + FILL * np.array(colours[tube]))
        drawn[edge] = colours[tube]
    return drawn


def _check_span(start: float | None, end: float | None) -> None:
    begin = 0.0 if start is None else start
    if not 0 <= begin < math.inf:
        raise SpecError("--start-seconds", start, "must be 0 or later")
    if end is not None and not begin < end < math.inf:
        raise SpecError("--end-seconds", end, f"must be later than {begin:g} s, where clips may start")


def _name(canvas: Canvas) -> str:
    rows, columns = canvas.tiles
    tiles = f", each {rows} x {columns} frames" if canvas.tiles != (1, 1) else ""
    step = f", every {canvas.step} sampled frames" if canvas.step > 1 else ""
    size = " x ".join(map(str, canvas.shape))
    return f"canvas {size} (T x H x W){tiles}{step}, {canvas.filter} filter"


def _legend(colours: dict[Tube, Colour]) -> Image.Image:
    """A line a tube: colour, name, sizes as T x H x W, tokens, and the images it starts at."""
    rows = [("tube", "kernel", "stride", "offset", "tokens", "from image")]
    for tube in colours:
        kernel, stride, offset, places = (
            " x ".join(map(str, sizes)) for sizes in (tube.kernel, tube.stride, tube.offset, tube.grid)
        )
        starts = list(map(str, tube.origins[0]))
        shown = ", ".join(starts if len(starts) <= 8 else [*starts[:3], "...", starts[-1]])
        rows.append((tube.name, kernel, stride, offset, f"{places} = {tube.tokens:,}", shown))
    columns = [page.text(lines, TEXT_PX) for lines in zip(*rows, strict=True)]
    side = columns[0].height // len(rows)
    keys = Image.new("RGB", (side, columns[0].height), WHITE)
    for i, colour in enumerate(colours.values(), 1):
        box = (2, i * side + 4, side - 12, (i + 1) * side - 10)
        ImageDraw.Draw(keys).rectangle(box, fill=colour, outline=INK)
    return page.row([keys, *columns], 3 * GAP_PX)


def _grid(panels: Sequence[Panel], colours: dict[Tube, Colour]) -> Image.Image:
    columns, room_px = page.room(len(panels), panels[0].image.shape[1])
    noted = any(panel.note for panel in panels)
    return page.grid([_cell(panel, at, colours, room_px, noted) for at, panel in enumerate(panels)], columns)


def _cell(panel: Panel, at: int, colours: dict[Tube, Colour], room_px: int, noted: bool) -> Image.Image:
    """An image below its label, every pixel doubled, tripled, ... while there is room, or shrunk to fit."""
    height, width = panel.image.shape[:2]
    scale = page.enlargement(height, width, room_px)
    if panel.touched:
        drawn = paint(panel.image, at, colours, scale)
    else:
        drawn = panel.image.repeat(scale, axis=0).repeat(scale, axis=1) // 4 + 64
        drawn[np.indices(drawn.shape[:2]).sum(axis=0) % 24 < 2] = 150
    picture = Image.fromarray(drawn)
    picture.thumbnail((room_px, MOST_PX))
    size = max(10, min(LABEL_PX, room_px // 20))
    note = [page.text([panel.note], size, ALERT)] if noted else []
    return page.column([page.text([panel.label], size), *note, picture], 0)
