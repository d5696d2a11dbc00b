"""Handwritten digits that move: eight classes that nothing but motion tells apart.

    python -m benchmarks.digits FOLDER [--clips 5000] [--images 0] [--seed 0]

A digit has four attributes: where it is across and down, how far it is turned, and how large it is. Each is
a phase in [0, 1), once around a circle: the picture is a torus, and a digit that has grown to its largest
starts again at its smallest. A clip moves one of them at a constant speed, forth or back; the others rest.

Phases start uniform and independent, so they are so in every frame of every class: one frame tells nothing.
Played backwards, a clip is one of the opposite class, as likely as any: all of its frames without their order
tell which attribute moves but not which way, so that nothing which averages frames can pass one half.

T frames, H = W = 64 pixels, A = 4 attributes.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pyarrow.csv as pacsv
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

from pipeline.cut import cut
from pipeline.plan import Canvas, Plan, Tube
from pipeline.sampling import Sampling
from pipeline.storage import locate
from pipeline.video import Pixels, read_clips

Split = Literal["train", "held-out"]
SPLITS: tuple[Split, ...] = ("train", "held-out")

ATTRIBUTES = ("across", "down", "turn", "zoom")
# What moves, and which way: to the right, down the picture, clockwise and larger are forth.
MOTIONS: Mapping[str, tuple[str, int]] = {
    "left": ("across", -1),
    "right": ("across", 1),
    "up": ("down", -1),
    "down": ("down", 1),
    "clockwise": ("turn", 1),
    "anticlockwise": ("turn", -1),
    "grow": ("zoom", 1),
    "shrink": ("zoom", -1),
}
SIZE_PX = 64
FRAMES = 32
RATE = 16
# How far an attribute moves in a clip, in periods: least and most.
PERIODS = {"across": (0.5, 1.25), "down": (0.5, 1.25), "turn": (0.3, 0.8), "zoom": (0.8, 1.6)}
GLYPH_PX = (32.0, 56.0)  # side of the digit's square, smallest and largest
HELD_OUT = 5  # every so many: of the samples of a digit, and of the clips


@dataclass(frozen=True)
class Scene:
    """All that the pictures of a clip, or a still one, are made of."""

    digit: int
    sample: int  # which one of scikit-learn's
    motion: str | None
    phases: np.ndarray  # float64 (T, A) in [0, 1)
    ink: np.ndarray  # float64 (3,), 0..255: the colour of the digit
    paper: np.ndarray  # float64 (H, W, 3), 0..255: what is behind it


@lru_cache
def samples() -> tuple[np.ndarray, dict[Split, list[np.ndarray]]]:
    """Float64 (1797, 8, 8) in [0, 1], and for each split and digit the samples that it may use."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    of_digit = [order[found.target[order] == digit] for digit in range(10)]
    held_out = [chosen[::HELD_OUT] for chosen in of_digit]
    train = [np.setdiff1d(chosen, out) for chosen, out in zip(of_digit, held_out, strict=True)]
    return found.images / 16, {"train": train, "held-out": held_out}


def draw(number: int, split: Split, seed: int, *, still: bool = False) -> Scene:
    """The `number`-th clip or still picture of a split; motions and digits take turns, all else is random."""
    rng = np.random.default_rng([seed, SPLITS.index(split), still, number])
    motion = None if still else list(MOTIONS)[number % len(MOTIONS)]
    digit = (number if still else number // len(MOTIONS)) % 10
    velocity_A = np.zeros(len(ATTRIBUTES))
    if motion is not None:
        attribute, sign = MOTIONS[motion]
        velocity_A[ATTRIBUTES.index(attribute)] = sign * rng.uniform(*PERIODS[attribute]) / FRAMES
    phases_TA = rng.random(len(ATTRIBUTES)) + np.arange(1 if still else FRAMES)[:, None] * velocity_A
    paper, ink = rng.uniform(0, 90, 3), rng.uniform(150, 255, 3)
    grain = rng.choice([0, 3]) * rng.standard_normal((SIZE_PX, SIZE_PX, 1))
    return Scene(
        digit=digit,
        sample=int(rng.choice(samples()[1][split][digit])),
        motion=motion,
        phases=phases_TA % 1,
        ink=ink,
        paper=paper + grain,
    )


def paint(scene: Scene) -> np.ndarray:
    """uint8 (T, H, W, 3)."""
    ink_THW1 = coverage(scene)[..., None]
    pictures = scene.paper * (1 - ink_THW1) + scene.ink * ink_THW1
    return pictures.round().clip(0, 255).astype(np.uint8)


def coverage(scene: Scene) -> np.ndarray:
    """float64 (T, H, W) in [0, 1]: how much of each pixel is ink."""
    across, down, turn, zoom = scene.phases.T[:, :, None, None]
    pixel = np.arange(SIZE_PX) + 0.5
    # From the digit's middle, the nearer way around the torus.
    x_THW = (pixel - across * SIZE_PX + SIZE_PX / 2) % SIZE_PX - SIZE_PX / 2
    y_THW = (pixel[:, None] - down * SIZE_PX + SIZE_PX / 2) % SIZE_PX - SIZE_PX / 2
    cells = 8 / (GLYPH_PX[0] * (GLYPH_PX[1] / GLYPH_PX[0]) ** zoom)
    cos, sin = np.cos(2 * np.pi * turn) * cells, np.sin(2 * np.pi * turn) * cells
    glyph, fineness = _glyph(scene.sample)
    middle = len(glyph) / 2 - 0.5
    places = np.stack([cos * y_THW - sin * x_THW, cos * x_THW + sin * y_THW]) * fineness + middle
    return ndimage.map_coordinates(glyph, places, order=1)


@lru_cache(maxsize=4096)
def _glyph(sample: int) -> tuple[np.ndarray, int]:
    """A sample with smooth edges and a rim of paper: float64 (40, 40) in [0, 1], and pixels to its cell."""
    fineness = 4
    rimmed = np.pad(samples()[0][sample], 1)
    return ndimage.zoom(rimmed, fineness, order=3, mode="grid-constant", grid_mode=True).clip(0, 1), fineness


def write(folder: Path, clips: int, seed: int, images: int = 0) -> None:
    """Lossless videos and still PNGs, with the lists of them that a job takes: clips.csv and images.csv.

    Of either a fifth is held out: split "held-out", of samples that never occur in the rest.
    Columns: uri, labels (the motion; the digit of a still), split, caption, digit, sample.
    """
    for kind, count in (("clips", clips), ("images", images)):
        if not count:
            continue
        (folder / kind).mkdir(parents=True, exist_ok=True)
        held_out, still = count // HELD_OUT, kind == "images"
        counts: dict[Split, int] = {"train": count - held_out, "held-out": held_out}
        rows = [
            _save(folder, f"{kind}/{split}_{number:05d}", split, draw(number, split, seed, still=still))
            for split, some in counts.items()
            for number in range(some)
        ]
        # Last: a folder with a list is complete.
        with (folder / f"{kind}.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)


def _save(folder: Path, name: str, split: Split, scene: Scene) -> dict[str, str | int]:
    """Write a scene's file; its row in the list."""
    pictures_THW3 = paint(scene)
    if scene.motion is None:
        uri, label, caption = f"{name}.png", str(scene.digit), f"a handwritten {scene.digit}"
        Image.fromarray(pictures_THW3[0]).save(folder / uri)
    else:
        uri, label, caption = f"{name}.mp4", scene.motion, _caption(scene.digit, scene.motion)
        encode(folder / uri, pictures_THW3)
    return {
        "uri": uri, "labels": label, "split": split, "caption": caption,
        "digit": scene.digit, "sample": scene.sample,
    }  # fmt: skip


def _caption(digit: int, motion: str) -> str:
    does = {"across": f"moves {motion}", "down": f"moves {motion}", "turn": f"turns {motion}"}
    return f"a handwritten {digit} that {does.get(MOTIONS[motion][0], f'{motion}s')}"


def encode(path: Path, pictures_THW3: np.ndarray) -> None:
    """H.264 in RGB without loss, so that what is read is what was painted."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=Fraction(RATE), options={"qp": "0"})
        stream.height, stream.width = pictures_THW3.shape[1:3]
        stream.pix_fmt = "rgb24"
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(pictures_THW3):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read(folder: Path, plan: Plan, split: Split) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The clips of a split, cut: {tube: uint8 (N, n_t, n_h, n_w, kT, kH, kW, 3)}, int64 (N,) motions."""
    rows = listed(folder / "clips.csv", split)
    tubes = {tube.name: np.empty((len(rows), *tube.shape), np.uint8) for tube in plan.tubes}
    for number, row in enumerate(rows):
        frames = frames_of(folder / row["uri"], plan)
        cut(frames, plan, {name: x[number] for name, x in tubes.items()})
    motions = list(MOTIONS)
    return tubes, np.array([motions.index(row["labels"]) for row in rows], dtype=np.int64)


def read_frames(folder: Path, canvas: Canvas, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """As `read`, uncut: uint8 (N, frames, h, w, 3) of `canvas.frame_size`, int64 (N,) motions."""
    whole = (1, *canvas.shape[1:])
    plan = Plan(tubes=(Tube(name="whole", kernel=whole, stride=whole, canvas=canvas),))
    rows, motions = listed(folder / "clips.csv", split), list(MOTIONS)
    frames = np.empty((len(rows), canvas.frames, *canvas.frame_size, 3), np.uint8)
    for number, row in enumerate(rows):
        frames[number] = frames_of(folder / row["uri"], plan)[canvas]
    return frames, np.array([motions.index(row["labels"]) for row in rows], dtype=np.int64)


# The motion that each turns into when its clip is turned a quarter anticlockwise, and when it is played back.
TURNED = ("down", "up", "left", "right", "clockwise", "anticlockwise", "grow", "shrink")
REVERSED = ("right", "left", "down", "up", "anticlockwise", "clockwise", "shrink", "grow")


def altered(
    frames: Mapping[Canvas, np.ndarray], motion: int, rng: np.random.Generator
) -> tuple[dict[Canvas, np.ndarray], int]:
    """Another clip, as likely as the given one, and its motion: what training may make more clips of.

    Shifted around the torus, turned by quarters, perhaps played backwards, its colour channels exchanged:
    none of these changes how clips are distributed. Frames are uint8 (T, h, w, 3), h = w a multiple of 16.
    """
    down, across = rng.integers(16, size=2)
    quarters, reverse, channels = int(rng.integers(4)), rng.random() < 0.5, rng.permutation(3)
    result = {}
    for canvas, x_THWC in frames.items():
        step = canvas.frame_size[0] // 16
        x_THWC = np.roll(x_THWC, (down * step, across * step), (1, 2))
        x_THWC = np.rot90(x_THWC, quarters, (1, 2))[:: -1 if reverse else 1]
        result[canvas] = x_THWC[..., channels]
    name = list(MOTIONS)[motion]
    for _ in range(quarters):
        name = TURNED[list(MOTIONS).index(name)]
    if reverse:
        name = REVERSED[list(MOTIONS).index(name)]
    return result, list(MOTIONS).index(name)


def frames_of(path: Path, plan: Plan) -> dict[Canvas, np.ndarray]:
    """The first frames of a clip, one after the other, on each canvas of a plan."""
    sampling = Sampling(frames=plan.clip_frames, stride=1, clips=1, height_px=SIZE_PX, width_px=SIZE_PX)
    (view,) = read_clips(locate(str(path)), sampling, plan)
    assert isinstance(view, Pixels), view
    return view.frames


def listed(path: Path, split: Split) -> list[dict[str, str]]:
    """The rows of a split."""
    rows: Iterator[dict[str, str]] = iter(pacsv.read_csv(path).to_pylist())
    return [row for row in rows if row["split"] == split]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=5000, help="videos, a fifth of them held out")
    parser.add_argument("--images", type=int, default=0, help="still pictures, a fifth of them held out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.clips, arguments.seed, arguments.images)


if __name__ == "__main__":
    main()
