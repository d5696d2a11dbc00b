"""What a trained model has learned, in pictures: its tubes' kernels, and where it looks in a clip.

Kernels are drawn as in "Sparse video tubes for joint video and image vision transformers" (Google Research
blog, 2023). T frames, H x W pixels of a canvas or of one small frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import models
from jobs import page
from jobs.page import GAP_PX, GRID_PX, LABEL_PX, MOST_PX, TEXT_PX, TITLE_PX, WHITE
from jobs.scene import Scene
from models.config import ModelConfig
from pipeline.cut import cut
from pipeline.errors import SpecError
from pipeline.plan import Canvas, Plan, Tube

if TYPE_CHECKING:
    from models.attention import Map
    from models.model import Model

KERNELS = 32  # of a tube: those with the largest norm
PATCH_PX, PIXEL_PX = 96, 12  # the longest sides of a frame of a kernel, and of a pixel of it
NUMBER_PX = 52  # what a channel's number takes
# From no heat to the most: dark to bright, so that it reads without colours too.
HEAT = np.array([(13, 8, 80), (126, 3, 168), (204, 71, 120), (248, 149, 64), (252, 230, 60)], np.float64)
SHADE = 0.6  # what is left of a frame's brightness
FAINT, STRONG = 0.3, 0.75  # how much of the picture the colour of no heat takes, and that of the most
TOP = 99.5  # the percentile of heat that is drawn as the most: one hot token must not hide the others


@dataclass(frozen=True)
class Kernels:
    """Of one tube: float32 (K, kT, kH, kW, 3), the strongest first; the channels they are, of so many."""

    name: str
    weights: np.ndarray
    channels: tuple[int, ...]
    total: int


def stored(checkpoint: str, model: str | None = None) -> ModelConfig:
    """What a saved folder says of its model; SpecError if it is none, or not of `model`."""
    from models.weights import stored_config

    try:
        config = stored_config(Path(checkpoint), "--checkpoint")
    except OSError as error:
        problem = f"{error.strerror or 'no config.json there'}; give a folder that training wrote"
        raise SpecError("--checkpoint", checkpoint, problem) from None
    except ValueError as error:
        raise SpecError("--checkpoint", checkpoint, str(error).partition(": ")[2]) from None
    if config.name not in models.names():
        raise SpecError("--checkpoint", checkpoint, f"it is of {config.name!r}, which is no model here")
    if model is not None and model != config.name:
        raise SpecError("--model", model, f"{checkpoint!r} is of {config.name!r}; leave --model out")
    return config


def draw_attention(scene: Scene, plan: Plan, model: Model, title: str) -> Image.Image:
    """A page of heat over the frames that a model's tokens cover, for each of its maps."""
    import torch

    from models.attention import attention

    tubes = {name: torch.from_numpy(x[None]) for name, x in cut(scene.frames, plan).items()}
    blocks = [page.text([title], TITLE_PX)]
    for name, found in attention(model, tubes).items():
        blocks.append(_map(scene, plan, name, found))
    return page.framed(blocks)


def draw_kernels(model: Model, title: str) -> Image.Image:
    """A page of each tube's strongest kernels: a row each, its frames from left to right."""
    about = [
        f"The {KERNELS} kernels of each tube with the largest norm, strongest first, down the columns.",
        "A row is one channel, with its number; from left to right are the frames of the kernel; its colours",
        "run from the least to the greatest of its own weights.",
    ]
    blocks = [page.column([page.text([title], TITLE_PX), page.text(about, TEXT_PX)])]
    for kernels in strongest(model, KERNELS):
        size = " x ".join(map(str, kernels.weights.shape[1:4]))
        line = f"{kernels.name}: {size} (T x H x W), {len(kernels.channels)} of {kernels.total} kernels"
        blocks.append(page.column([page.text([line], TEXT_PX), _kernels(kernels)]))
    return page.framed(blocks)


def strongest(model: Model, most: int) -> list[Kernels]:
    """The kernels of every tube of every tokenizer in a model, by norm; of equals, the first channel."""
    from models.tokenizer import TubeTokenizer

    found = []
    for path, module in model.named_modules():
        for tube in module.plan.tubes if isinstance(module, TubeTokenizer) else ():
            weights = module.kernel(tube).detach().float().numpy()
            order = np.argsort(-np.linalg.norm(weights, axis=1), kind="stable")[:most]
            shaped = weights[order].reshape(-1, *tube.kernel, 3)
            found.append(Kernels(f"{path} {tube.name}", shaped, tuple(order.tolist()), len(weights)))
    return found


def kernel_image(kernel: np.ndarray, scale: int, gap: int = 4) -> np.ndarray:
    """(kT, kH, kW, 3) -> uint8 (scale kH, kT (scale kW + gap) - gap, 3), from its least to its greatest."""
    low, high = kernel.min(), kernel.max()
    shares = (kernel - low) / (high - low) if high > low else np.full_like(kernel, 0.5)
    frames = np.rint(255 * shares).astype(np.uint8).repeat(scale, axis=1).repeat(scale, axis=2)
    spaced = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(spaced), axis=1)[:, : -gap or None]


def heat(plan: Plan, weights: Mapping[str, np.ndarray], canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """What each pixel of a canvas' frames is looked at: the sum of the weights of the tokens that cover it.

    Returns:
        float64 (canvas.frames, h, w), small frames of a tiled canvas one by one; bool, whether any covers it:
        a place of weight 0 is one where the model has no token.
    """
    total, covered = np.zeros(canvas.shape), np.zeros(canvas.shape, bool)
    for tube in plan.tubes:
        if tube.canvas == canvas and tube.name in weights:
            for place, weight in zip(_places(tube), weights[tube.name].reshape(-1), strict=True):
                total[place] += weight
                covered[place] |= weight > 0
    return _frames(total, canvas), _frames(covered, canvas)


def overlay(frame: np.ndarray, heat: np.ndarray, covered: np.ndarray, most: float) -> np.ndarray:
    """uint8 (h, w, 3): a grey frame under the colours of its heat; bare where no token is."""
    grey = SHADE * np.repeat(frame.mean(axis=-1, keepdims=True), 3, axis=-1)
    share = np.clip(heat / most, 0, 1)
    opacity = (covered * (FAINT + (STRONG - FAINT) * share))[..., None]
    return np.rint((1 - opacity) * grey + opacity * colours(share)).astype(np.uint8)


def colours(share: np.ndarray) -> np.ndarray:
    """float64 (..., 3), 0..255, of heat in 0..1."""
    places = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(share, places, HEAT[:, channel]) for channel in range(3)], axis=-1)


def _places(tube: Tube) -> list[tuple[slice, slice, slice]]:
    """The footprints of a tube's tokens, in the order of its grid."""
    k_t, k_h, k_w = tube.kernel
    return [
        (slice(t, t + k_t), slice(h, h + k_h), slice(w, w + k_w))
        for t in tube.origins[0]
        for h in tube.origins[1]
        for w in tube.origins[2]
    ]


def _frames(images: np.ndarray, canvas: Canvas) -> np.ndarray:
    """(T, H, W) of a canvas -> (canvas.frames, h, w): tiles one after the other."""
    (rows, columns), (h, w) = canvas.tiles, canvas.frame_size
    return images.reshape(-1, rows, h, columns, w).swapaxes(2, 3).reshape(-1, h, w)


def _map(scene: Scene, plan: Plan, name: str, found: Map) -> Image.Image:
    weights = {tube: x.numpy() for tube, x in found.weights.items()}
    counts = {tube: int((x > 0).sum()) for tube, x in weights.items()}
    tokens = sum(counts.values())
    canvases = [
        canvas
        for canvas in plan.canvases
        if any(tube.name in weights for tube in plan.tubes if tube.canvas == canvas)
    ]
    heats = {canvas: heat(plan, weights, canvas) for canvas in canvases}
    values = np.concatenate([total[covered] for total, covered in heats.values()])
    most = max(float(np.percentile(values, TOP)), 1e-12)
    lines = [f"{name}: {found.about}"]
    if len(weights) > 1:
        shares = (f"{tube} {x.sum():.1%} ({counts[tube] / tokens:.1%})" for tube, x in weights.items())
        lines.append(f"attention to each tube (and its share of all tokens): {', '.join(shares)}")
    parts = [page.column([page.text(lines, TEXT_PX), _legend(most * tokens, tokens)])]
    for canvas, (total, covered) in heats.items():
        cells = _cells(scene, canvas, total, covered, most)
        parts.append(page.grid(cells, page.room(len(cells), canvas.frame_size[1])[0]))
    return page.column(parts)


def _cells(
    scene: Scene, canvas: Canvas, total: np.ndarray, covered: np.ndarray, most: float
) -> list[Image.Image]:
    """The frames that any token covers, in order."""
    height, width = canvas.frame_size
    shown = [t for t in range(canvas.frames) if covered[t].any()]
    _, room_px = page.room(len(shown), width)
    scale = page.enlargement(height, width, room_px)
    cells = []
    for t in shown:
        drawn = overlay(scene.frames[canvas][t], total[t], covered[t], most)
        picture = Image.fromarray(drawn.repeat(scale, axis=0).repeat(scale, axis=1))
        picture.thumbnail((room_px, MOST_PX))
        label = page.text([scene.labels[t * canvas.step]], max(10, min(LABEL_PX, room_px // 20)))
        cells.append(page.column([label, picture], 0))
    return cells


def _legend(most: float, tokens: int) -> Image.Image:
    """A bar of the colours, from no attention to the most."""
    bar = np.tile(np.linspace(0, 1, 600), (TEXT_PX, 1))
    image = Image.fromarray(np.rint(colours(bar)).astype(np.uint8))
    unit = f"{most:.1f} or more even shares (each 1 / {tokens:,}: all tokens alike)"
    rest = "the sum of the tokens that cover a pixel; grey: none does"
    return page.row([page.text(["0"], TEXT_PX), image, page.text([f"{unit}; {rest}"], TEXT_PX)])


def _kernels(kernels: Kernels) -> Image.Image:
    frames, height, width = kernels.weights.shape[1:4]
    scale = min(PATCH_PX, (GRID_PX - NUMBER_PX) // frames) // max(height, width)
    scale = min(max(1, scale), PIXEL_PX)
    rows = []
    for channel, kernel in zip(kernels.channels, kernels.weights, strict=True):
        image = Image.fromarray(kernel_image(kernel, scale))
        line = Image.new("RGB", (NUMBER_PX + image.width, image.height), WHITE)
        number = page.text([str(channel)], LABEL_PX)
        line.paste(number, (NUMBER_PX - GAP_PX // 2 - number.width, (image.height - number.height) // 2))
        line.paste(image, (NUMBER_PX, 0))
        rows.append(line)
    abreast = max(1, GRID_PX // (rows[0].width + GAP_PX))
    down = math.ceil(len(rows) / abreast)
    return page.row([page.column(rows[i : i + down]) for i in range(0, len(rows), down)])
