"""What pages are made of: lines of text and images, in rows and columns on white."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
WHITE, INK, ALERT = (255, 255, 255), (20, 20, 20), (176, 58, 0)
GAP_PX = 12
GRID_PX, COLUMNS = 3700, 8  # how wide a grid of images may be, and how many stand abreast if they are small
LEAST_PX, MOST_PX = 160, 900  # of an image: the least room in width, and the most in both
TITLE_PX, TEXT_PX, LABEL_PX = 44, 28, 20


def framed(blocks: Sequence[Image.Image]) -> Image.Image:
    """A page: blocks below each other, and a margin."""
    page = column(blocks, 3 * GAP_PX)
    image = Image.new("RGB", (page.width + 4 * GAP_PX, page.height + 4 * GAP_PX), WHITE)
    image.paste(page, (2 * GAP_PX, 2 * GAP_PX))
    return image


def grid(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    """Cells in reading order, so many abreast."""
    return row([column(cells[i::columns]) for i in range(columns)])


def room(count: int, width: int) -> tuple[int, int]:
    """For so many images of a width: how many stand abreast, and the pixels that each has."""
    abreast = COLUMNS if width <= GRID_PX // COLUMNS else COLUMNS // 2
    columns = min(count, max(abreast, math.isqrt(count)))
    return columns, min(max(GRID_PX // columns - GAP_PX, LEAST_PX), MOST_PX)


def enlargement(height: int, width: int, room_px: int) -> int:
    """How many times as large an image may be drawn; 1 also if it must be shrunk."""
    return max(1, min(room_px // width, MOST_PX // height))


def text(lines: Sequence[str], size_px: int, colour: Colour = INK) -> Image.Image:
    """Lines of text on white, as narrow as they are."""
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


def row(images: Sequence[Image.Image], gap: int = GAP_PX) -> Image.Image:
    """Images beside each other, at the top."""
    size = (sum(image.width + gap for image in images) - gap, max(image.height for image in images))
    joined, x = Image.new("RGB", size, WHITE), 0
    for image in images:
        joined.paste(image, (x, 0))
        x += image.width + gap
    return joined


def column(images: Sequence[Image.Image], gap: int = GAP_PX) -> Image.Image:
    """Images below each other, at the left."""
    size = (max(image.width for image in images), sum(image.height + gap for image in images) - gap)
    joined, y = Image.new("RGB", size, WHITE), 0
    for image in images:
        joined.paste(image, (0, y))
        y += image.height + gap
    return joined
