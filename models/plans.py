"""The plans of the models: which tubes each of them looks at. Pure arithmetic, no torch."""

from __future__ import annotations

from models.config import TubeConfig
from pipeline.plan import Canvas, Filter, Plan, Tube

# TubeViT (arXiv:2212.03229), Table 12: kernel, stride, offset in (T, H, W).
TUBEVIT = (
    TubeConfig(kernel=(8, 8, 8), stride=(16, 32, 32)),
    TubeConfig(kernel=(16, 4, 4), stride=(6, 32, 32), offset=(4, 8, 8)),
    TubeConfig(kernel=(4, 12, 12), stride=(16, 32, 32), offset=(0, 16, 16)),
    TubeConfig(kernel=(1, 16, 16), stride=(32, 16, 16)),
)
# Section 3.4 and Table 12: twice as long by space-to-depth in time, four times as large by it in space.
TUBEVIT_DEEP = (
    TubeConfig(kernel=(8, 8, 8), stride=(16, 32, 32), space_to_depth=(2, 1, 1)),
    TubeConfig(kernel=(16, 4, 4), stride=(6, 32, 32), offset=(4, 8, 8), space_to_depth=(1, 2, 2)),
    *TUBEVIT[2:],
)
# Section 4.1's "core" tubes.
TUBEVIT_CORE = (
    TubeConfig(kernel=(8, 8, 8), stride=(16, 16, 16)),
    TubeConfig(kernel=(1, 16, 16), stride=(16, 16, 16)),
)
# For pictures of 64 pixels, on which few tubes fit at the paper's distances: half of those, and patches that
# overlap, 36 to a picture.
TUBEVIT_CLOSE = (
    TubeConfig(kernel=(8, 8, 8), stride=(8, 16, 16)),
    TubeConfig(kernel=(16, 4, 4), stride=(6, 16, 16), offset=(4, 8, 8)),
    TubeConfig(kernel=(4, 12, 12), stride=(8, 16, 16), offset=(0, 16, 16)),
    TubeConfig(kernel=(1, 14, 14), stride=(32, 10, 10)),
)
# Section 3.6: the 3-D tubes of a TubeViT a quarter as wide as what carries them, four places to a token. The
# third starts further out, so that as many of its larger tokens fit.
GRAFTED = (
    TubeConfig(kernel=(8, 8, 8), stride=(16, 32, 32), space_to_depth=(1, 2, 2)),
    TubeConfig(kernel=(16, 4, 4), stride=(6, 32, 32), offset=(4, 8, 8), space_to_depth=(1, 2, 2)),
    TubeConfig(kernel=(4, 12, 12), stride=(16, 32, 32), offset=(0, 4, 4), space_to_depth=(1, 2, 2)),
)
# ViViT (arXiv:2103.15691): "B/16x2" has tubelets of 2 frames of 16 x 16 pixels.
VIVIT = (TubeConfig(kernel=(2, 16, 16), stride=(2, 16, 16)),)

# DualPath: how many frames the spatial path sees, and (rows, columns) of small ones in an image of the other.
KEY_FRAMES = 8
FRAMESET = (4, 4)


def canvas(frames: int, size: tuple[int, int], filter: Filter) -> Canvas:
    """The one canvas of all these models; shared, so that their plans can be merged."""
    return Canvas(frames=frames, height_px=size[0], width_px=size[1], filter=filter)


def tubes(canvas: Canvas, wanted: tuple[TubeConfig, ...]) -> Plan:
    """Any tubes on one canvas. TubeViT's at 32x224x224: 98 + 147 + 98 + 196 = 539 tokens (559 is a slip)."""
    least = [max(tube.extent[axis] for tube in wanted) for axis in range(3)]
    if canvas.frames < least[0]:
        raise ValueError(f"frames = {canvas.frames}: the model's tubes need at least {least[0]} frames")
    if canvas.height_px < least[1] or canvas.width_px < least[2]:
        raise ValueError(
            f"size = {canvas.frame_size}: the model's tubes need at least {least[1]}x{least[2]} pixels"
        )
    names = tube_names(wanted)
    return Plan(
        tubes=tuple(
            Tube(name=name, kernel=tube.kernel, stride=tube.step, offset=tube.offset, canvas=canvas)
            for name, tube in zip(names, wanted, strict=True)
        )
    )


def tube_names(wanted: tuple[TubeConfig, ...]) -> list[str]:
    """A name for each tube: that of its kernel, numbered if there are several of one."""
    names: list[str] = []
    for tube in wanted:
        name, before = (
            tube_name(tube.kernel),
            sum(tube.kernel == other.kernel for other in wanted[: len(names)]),
        )
        names.append(name if not before else f"{name}_{before + 1}")
    return names


def clip(canvas: Canvas, patch: int, every: int) -> Plan:
    """CLIP's patches, dense in space, on every `every`-th frame."""
    if canvas.height_px < patch or canvas.width_px < patch:
        raise ValueError(f"size = {canvas.frame_size}: smaller than one {patch}x{patch} CLIP patch")
    return Plan(tubes=(_tube((1, patch, patch), (every, patch, patch), (0, 0, 0), canvas),))


def gated(canvas: Canvas, wanted: tuple[TubeConfig, ...], patch: int, every: int) -> Plan:
    """Both; with 16-pixel patches TubeViT's 2-D tube is a part of CLIP's, and is not stored twice."""
    return tubes(canvas, wanted).union(clip(canvas, patch, every))


def dualpath(canvas: Canvas, patch: int) -> Plan:
    """DualPath's 8 key frames, and its framesets: all frames, shrunk, 16 of them laid into one image.

    Park et al., CVPR 2023; github.com/jongwoopark7978/DualPath.
    """
    frames, (height, width) = canvas.frames, canvas.frame_size
    if frames % (FRAMESET[0] * FRAMESET[1]):
        raise ValueError(f"frames = {frames}: DualPath takes a multiple of 16 frames")
    if height % FRAMESET[0] or width % FRAMESET[1] or height < patch or width < patch:
        raise ValueError(f"size = {canvas.frame_size}: DualPath takes multiples of 4, of {patch} or more")
    grid = canvas.model_copy(update={"tiles": FRAMESET})
    kernel = (1, patch, patch)
    spatial = _tube(kernel, (frames // KEY_FRAMES, patch, patch), (0, 0, 0), canvas)
    temporal = Tube(name=f"grid_1x{patch}x{patch}", kernel=kernel, stride=kernel, canvas=grid)
    return Plan(tubes=(spatial, temporal))


def _tube(kernel: tuple, stride: tuple, offset: tuple, canvas: Canvas) -> Tube:
    return Tube(name=tube_name(kernel), kernel=kernel, stride=stride, offset=offset, canvas=canvas)


def tube_name(kernel: tuple[int, int, int]) -> str:
    """Tubes are named after their kernels."""
    return f"tube_{kernel[0]}x{kernel[1]}x{kernel[2]}"
