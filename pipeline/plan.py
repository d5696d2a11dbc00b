"""What a model wants to see of a clip: canvases, tubes and plans. Pure arithmetic, no pixels.

A *canvas* is what a sampled clip is turned into before anything is cut. A *tube* is a kernel slid over a
canvas. A *plan* is a set of tubes: exactly the pixels that a model wants. The order is always (T, H, W).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

CHANNELS = 3  # uint8 RGB, so a pixel is three bytes

Filter = Literal["area", "bilinear", "bicubic"]
Sizes = tuple[PositiveInt, PositiveInt, PositiveInt]
Offsets = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]
Slices = tuple[slice, slice, slice]
Array = TypeVar("Array")


class Frozen(BaseModel):
    """Data at rest: immutable, strictly typed, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Canvas(Frozen):
    """The pixels that tubes are cut from: every `step`-th frame of a sampled clip, at one size.

    With `tiles` (rows, columns) each group of rows * columns consecutive frames is shrunk and laid
    row-major into one image, as DualPath's framesets are; (1, 1) leaves frames alone.
    """

    frames: PositiveInt
    height_px: PositiveInt
    width_px: PositiveInt
    step: PositiveInt = 1
    filter: Filter = "area"
    tiles: tuple[PositiveInt, PositiveInt] = (1, 1)

    @model_validator(mode="after")
    def _tiles_divide(self) -> Self:
        rows, columns = self.tiles
        if self.frames % (rows * columns) or self.height_px % rows or self.width_px % columns:
            raise ValueError(
                f"{rows}x{columns} tiles do not divide {self.frames} frames of "
                f"{self.height_px}x{self.width_px} px"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W) that tubes slide over."""
        return self.frames // (self.tiles[0] * self.tiles[1]), self.height_px, self.width_px

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) in pixels of one video frame on this canvas."""
        return self.height_px // self.tiles[0], self.width_px // self.tiles[1]

    def image(self) -> Canvas:
        """The same canvas for a still image: one frame."""
        return Canvas(frames=1, height_px=self.height_px, width_px=self.width_px, filter=self.filter)


class Tube(Frozen):
    """A (kT, kH, kW) kernel slid over a canvas; every place it stops at is one token.

    Only whole kernels count (a VALID convolution of the canvas from `offset` on; TubeViT, section 3.1).
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    kernel: Sizes
    stride: Sizes
    offset: Offsets = (0, 0, 0)
    canvas: Canvas

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for axis, size, kernel, offset in zip(
            "THW", self.canvas.shape, self.kernel, self.offset, strict=True
        ):
            if offset + kernel > size:
                raise ValueError(
                    f"tube '{self.name}' does not fit: axis {axis} of its canvas is {size}, "
                    f"but offset {offset} + kernel {kernel} needs {offset + kernel}"
                )
        return self

    @property
    def origins(self) -> tuple[range, range, range]:
        """Where the kernel stops, an axis each: the one function that cutting, positions and tests use."""
        t, h, w = (
            range(offset, size - kernel + 1, stride)
            for size, kernel, stride, offset in zip(
                self.canvas.shape, self.kernel, self.stride, self.offset, strict=True
            )
        )
        return t, h, w

    @property
    def grid(self) -> tuple[int, int, int]:
        """(n_t, n_h, n_w): how many places along each axis."""
        t, h, w = self.origins
        return len(t), len(h), len(w)

    @property
    def tokens(self) -> int:
        n_t, n_h, n_w = self.grid
        return n_t * n_h * n_w

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_t, n_h, n_w, kT, kH, kW, 3): one clip's uint8 tensor."""
        return (*self.grid, *self.kernel, CHANNELS)

    @property
    def bytes_per_clip(self) -> int:
        k_t, k_h, k_w = self.kernel
        return self.tokens * k_t * k_h * k_w * CHANNELS

    @property
    def centres(self) -> np.ndarray:
        """float64 (n_t, n_h, n_w, 3): (t, h, w) of every tube's middle, in clip frames and canvas pixels."""
        t, h, w = (
            np.asarray(origins, dtype=np.float64) + kernel / 2
            for origins, kernel in zip(self.origins, self.kernel, strict=True)
        )
        rows, columns = self.canvas.tiles
        t *= self.canvas.step * rows * columns
        return np.stack(np.meshgrid(t, h, w, indexing="ij"), axis=-1)

    def slice_of(self, outer: Tube) -> Slices | None:
        """How to index `outer`'s grid to get exactly this tube; None if its places are not all there."""
        if self.canvas != outer.canvas or self.kernel != outer.kernel:
            return None
        t, h, w = (_slice(o, i) for o, i in zip(outer.origins, self.origins, strict=True))
        return None if t is None or h is None or w is None else (t, h, w)

    def image(self) -> Tube | None:
        """The same tube on a still image, or None if it needs more than the first frame."""
        if self.kernel[0] != 1 or self.offset[0] != 0 or self.canvas.tiles != (1, 1):
            return None
        return Tube(
            name=self.name,
            kernel=self.kernel,
            stride=(1, *self.stride[1:]),
            offset=self.offset,
            canvas=self.canvas.image(),
        )


class Plan(Frozen):
    """A set of tubes. `digest` names it; two plans with one digest hold the same bytes."""

    tubes: Annotated[tuple[Tube, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [tube.name for tube in self.tubes]
        if len(set(names)) < len(names):
            raise ValueError(f"tube names must differ, but are {names}")
        return self

    @property
    def canvases(self) -> tuple[Canvas, ...]:
        return tuple(dict.fromkeys(tube.canvas for tube in self.tubes))

    @property
    def tokens(self) -> int:
        return sum(tube.tokens for tube in self.tubes)

    @property
    def bytes_per_clip(self) -> int:
        return sum(tube.bytes_per_clip for tube in self.tubes)

    @property
    def clip_frames(self) -> int:
        """How many sampled frames a clip must have for every canvas to be filled."""
        return max((canvas.frames - 1) * canvas.step + 1 for canvas in self.canvases)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def frames_of(self, canvas: Canvas) -> list[int]:
        """Which of the clip's frames any tube on this canvas touches, in order."""
        per_image = canvas.tiles[0] * canvas.tiles[1]
        images = {
            origin + k
            for tube in self.tubes
            if tube.canvas == canvas
            for origin in tube.origins[0]
            for k in range(tube.kernel[0])
        }
        return [(image * per_image + k) * canvas.step for image in sorted(images) for k in range(per_image)]

    def locate(self, wanted: Plan) -> dict[str, tuple[str, Slices]] | None:
        """For each tube of `wanted`: the tube here that holds it, and where. None if one is missing."""
        found = {}
        for tube in wanted.tubes:
            for held in self.tubes:
                slices = tube.slice_of(held)
                if slices is not None:
                    found[tube.name] = (held.name, slices)
                    break
            else:
                return None
        return found

    def contains(self, wanted: Plan) -> bool:
        return self.locate(wanted) is not None

    def take(self, tubes: Mapping[str, Array], wanted: Plan) -> dict[str, Array]:
        """Views of a batch {name: (B, n_t, n_h, n_w, ...)} cut by this plan, as `wanted` names them.

        Works on numpy arrays and torch tensors alike and copies nothing.
        """
        found = self.locate(wanted)
        if found is None:
            raise ValueError(f"plan {self} does not contain plan {wanted}")
        every = slice(None)
        return {name: tubes[held][every, t, h, w] for name, (held, (t, h, w)) in found.items()}  # type: ignore[index]

    def union(self, other: Plan) -> Plan:
        """The tubes of both; one that another holds is merged into it."""
        tubes = list(self.tubes)
        for new in other.tubes:
            if any(new.slice_of(held) is not None for held in tubes):
                continue
            kept = [held for held in tubes if held.slice_of(new) is None]
            names = {held.name for held in kept}
            free = (f"{new.name}_{k}" for k in range(2, len(kept) + 3))
            name = new.name if new.name not in names else next(n for n in free if n not in names)
            tubes = [*kept, new.model_copy(update={"name": name})]
        return Plan(tubes=tuple(tubes))

    def image(self) -> Plan | None:
        """The plan of a still image (T = 1), or None if no tube here can be cut from one frame."""
        stills = [still for tube in self.tubes if (still := tube.image()) is not None]
        if not stills:
            return None
        plan = Plan(tubes=(stills[0],))
        for still in stills[1:]:
            plan = plan.union(Plan(tubes=(still,)))
        return plan

    def __str__(self) -> str:
        parts = []
        for tube in self.tubes:
            canvas = tube.canvas
            step = f" every {canvas.step}" if canvas.step > 1 else ""
            tiles = f" tiled {canvas.tiles[0]}x{canvas.tiles[1]}" if canvas.tiles != (1, 1) else ""
            k, s, o = ("x".join(map(str, v)) for v in (tube.kernel, tube.stride, tube.offset))
            size = f"{canvas.frames}x{canvas.height_px}x{canvas.width_px}"
            parts.append(f"{tube.name} {k}/{s}+{o} on {size}{step}{tiles} {canvas.filter}")
        return f"{self.digest} [{'; '.join(parts)}]"


def _slice(outer: range, inner: range) -> slice | None:
    """The slice s with outer[s] == inner, or None."""
    if inner[0] not in outer or inner[-1] not in outer:
        return None
    step = 1
    if len(inner) > 1:
        step, rest = divmod(inner.step, outer.step)
        if rest:
            return None
    return slice(outer.index(inner[0]), outer.index(inner[-1]) + 1, step)
