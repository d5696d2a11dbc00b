"""`tubelet inspect`: a clip on one page, its frames, and on them the footprint of every tube of a plan."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import models
from jobs.scene import Panel, Scene, read_scene
from pipeline.errors import MediaError, SpecError, SpecListError, StorageError
from pipeline.plan import Canvas, Plan, Tube
from pipeline.sampling import Sampling
from pipeline.storage import locate, write_atomic
from pipeline.tables import IMAGE_SUFFIXES, suffix_of

Colour = tuple[int, int, int]
# Told apart with any colour vision (Okabe and Ito); the bright ones first, which stand out from pictures.
COLOURS: tuple[Colour, ...] = (
    (86, 180, 233), (230, 159, 0), (240, 228, 66), (204, 121, 167), (0, 158, 115), (213, 94, 0),
    (0, 114, 178),
)  # fmt: skip
WHITE, INK, ALERT = (255, 255, 255), (20, 20, 20), (176, 58, 0)
FILL = 0.25  # the share of its colour in a footprint
GAP_PX = 12
GRID_PX, COLUMNS = 3700, 8  # how wide a grid of images may be, and how many stand abreast if they are small
LEAST_PX, MOST_PX = 160, 900  # of an image: the least room in width, and the most in both
TITLE_PX, TEXT_PX, LABEL_PX = 44, 28, 20
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MOST_FRAMES, MOST_PIXELS = 512, 1 << 27  # of a clip: more is no page that anyone could look at


def inspect(
    video: str,
    model: str,
    output: str,
    sampling: Sampling,
    clip: int | None = None,
    span_seconds: tuple[float | None, float | None] = (None, None),
) -> Image.Image:
    """Draw one clip of a video, or an image, into the file `output`.

    Args:
        sampling: with `clips`.
        clip: which of them; None: the middle one.
        span_seconds: see `choose_clips`.

    Raises:
        SpecError: what is asked for cannot be drawn; it names the option of the command that asks for it.
    """
    if suffix_of(output) not in FORMATS:
        raise SpecError("--output", output, f"its name must end with one of {', '.join(FORMATS)}")
    place, target = locate(video, "VIDEO"), locate(output, "--output")
    if place == target:
        raise SpecError("--output", output, "this is the input; give the drawing a name of its own")
    size = (sampling.height_px, sampling.width_px)
    if sampling.frames > MOST_FRAMES or sampling.frames * size[0] * size[1] > MOST_PIXELS:
        most = f"draw at most {MOST_FRAMES} frames, of {MOST_PIXELS:,} pixels together"
        raise SpecError("--frames", sampling.frames, f"too many of {size[0]}x{size[1]}; {most}")
    options: models.Options = {"frames": sampling.frames, "size": size, "filter": sampling.filter}
    try:
        plan, image_plan = models.plan(model, **options), models.image_plan(model, **options)
    except ValueError as error:
        raise SpecListError([f"--{str(error).replace('model.name', 'model', 1)}"]) from None
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
    drawn, data = draw(scene, plan, f"{place.path.rpartition('/')[2]}    {model}"), io.BytesIO()
    drawn.save(data, FORMATS[suffix_of(output)], quality=90)
    try:
        write_atomic(target, data.getvalue())
    except StorageError as error:
        reason = getattr(error.__cause__, "strerror", None) or " ".join(str(error.__cause__).split())
        raise SpecError("--output", output, f"cannot be written to ({reason})") from None
    return drawn


def draw(scene: Scene, plan: Plan, title: str) -> Image.Image:
    """The whole page: facts and a legend of the tubes, and below the images of each canvas in order."""
    colours = {tube: COLOURS[i % len(COLOURS)] for i, tube in enumerate(plan.tubes)}
    about = _column([_text([title], TITLE_PX), _text(scene.facts, TEXT_PX), _legend(colours)])
    blocks = [_row([scene.whole, about], 3 * GAP_PX)]
    for canvas, panels in scene.panels.items():
        own = {tube: colour for tube, colour in colours.items() if tube.canvas == canvas}
        blocks.append(_column([_text([_name(canvas)], TEXT_PX), _grid(panels, own)]))
    page = _column(blocks, 3 * GAP_PX)
    framed = Image.new("RGB", (page.width + 4 * GAP_PX, page.height + 4 * GAP_PX), WHITE)
    framed.paste(page, (2 * GAP_PX, 2 * GAP_PX))
    return framed


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
        kernel, stride, offset, grid = (
            " x ".join(map(str, sizes)) for sizes in (tube.kernel, tube.stride, tube.offset, tube.grid)
        )
        starts = list(map(str, tube.origins[0]))
        shown = ", ".join(starts if len(starts) <= 8 else [*starts[:3], "...", starts[-1]])
        rows.append((tube.name, kernel, stride, offset, f"{grid} = {tube.tokens:,}", shown))
    columns = [_text(column, TEXT_PX) for column in zip(*rows, strict=True)]
    side = columns[0].height // len(rows)
    keys = Image.new("RGB", (side, columns[0].height), WHITE)
    for i, colour in enumerate(colours.values(), 1):
        box = (2, i * side + 4, side - 12, (i + 1) * side - 10)
        ImageDraw.Draw(keys).rectangle(box, fill=colour, outline=INK)
    return _row([keys, *columns], 3 * GAP_PX)


def _grid(panels: Sequence[Panel], colours: dict[Tube, Colour]) -> Image.Image:
    abreast = COLUMNS if panels[0].image.shape[1] <= GRID_PX // COLUMNS else COLUMNS // 2
    columns = min(len(panels), max(abreast, math.isqrt(len(panels))))
    room = min(max(GRID_PX // columns - GAP_PX, LEAST_PX), MOST_PX)
    noted = any(panel.note for panel in panels)
    cells = [_cell(panel, at, colours, room, noted) for at, panel in enumerate(panels)]
    return _row([_column(cells[i::columns]) for i in range(columns)])


def _cell(panel: Panel, at: int, colours: dict[Tube, Colour], room: int, noted: bool) -> Image.Image:
    """An image below its label, every pixel doubled, tripled, ... while there is room, or shrunk to fit."""
    height, width = panel.image.shape[:2]
    scale = max(1, min(room // width, MOST_PX // height))
    if panel.touched:
        drawn = paint(panel.image, at, colours, scale)
    else:
        drawn = panel.image.repeat(scale, axis=0).repeat(scale, axis=1) // 4 + 64
        drawn[np.indices(drawn.shape[:2]).sum(axis=0) % 24 < 2] = 150
    picture = Image.fromarray(drawn)
    picture.thumbnail((room, MOST_PX))
    size = max(10, min(LABEL_PX, room // 20))
    note = [_text([panel.note], size, ALERT)] if noted else []
    return _column([_text([panel.label], size), *note, picture], 0)


def _text(lines: Sequence[str], size_px: int, colour: Colour = INK) -> Image.Image:
    font, height = _font(size_px), round(size_px * 1.4)
    # What is no character at all, as a file's name may hold, cannot be drawn.
    lines = [line.encode(errors="replace").decode() for line in lines]
    width = math.ceil(max(font.getlength(line) for line in lines))
    image = Image.new("RGB", (max(1, width), height * len(lines)), WHITE)
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((0, i * height), line, fill=colour, font=font)
    return image


@lru_cache
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size_px)


def _row(images: Sequence[Image.Image], gap: int = GAP_PX) -> Image.Image:
    size = (sum(image.width + gap for image in images) - gap, max(image.height for image in images))
    row, x = Image.new("RGB", size, WHITE), 0
    for image in images:
        row.paste(image, (x, 0))
        x += image.width + gap
    return row


def _column(images: Sequence[Image.Image], gap: int = GAP_PX) -> Image.Image:
    size = (max(image.width for image in images), sum(image.height + gap for image in images) - gap)
    column, y = Image.new("RGB", size, WHITE), 0
    for image in images:
        column.paste(image, (0, y))
        y += image.height + gap
    return column
