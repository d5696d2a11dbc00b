"""The plans of the models: which tubes each of them looks at. Pure arithmetic, no torch."""

from __future__ import annotations

from pipeline.plan import Canvas, Filter, Plan, Tube

# TubeViT (arXiv:2212.03229), Table 12 without space-to-depth: kernel, stride, offset in (T, H, W).
TUBEVIT = (
    ((8, 8, 8), (16, 32, 32), (0, 0, 0)),
    ((16, 4, 4), (6, 32, 32), (4, 8, 8)),
    ((4, 12, 12), (16, 32, 32), (0, 16, 16)),
    ((1, 16, 16), (32, 16, 16), (0, 0, 0)),
)

# DualPath: how many frames the spatial path sees, and (rows, columns) of small ones in an image of the other.
KEY_FRAMES = 8
FRAMESET = (4, 4)


def canvas(frames: int, size: tuple[int, int], filter: Filter) -> Canvas:
    """The one canvas of all these models; shared, so that their plans can be merged."""
    return Canvas(frames=frames, height_px=size[0], width_px=size[1], filter=filter)


def tubevit(canvas: Canvas) -> Plan:
    """TubeViT's four sparse tubes. 32x224x224: 98 + 147 + 98 + 196 = 539 tokens ("559" is a slip)."""
    least = [max(offset[axis] + kernel[axis] for kernel, _, offset in TUBEVIT) for axis in range(3)]
    if canvas.frames < least[0]:
        raise ValueError(f"frames = {canvas.frames}: TubeViT's tubes need at least {least[0]} frames")
    if canvas.height_px < least[1] or canvas.width_px < least[2]:
        raise ValueError(
            f"size = {canvas.frame_size}: TubeViT's tubes need at least {least[1]}x{least[2]} pixels"
        )
    return Plan(tubes=tuple(_tube(kernel, stride, offset, canvas) for kernel, stride, offset in TUBEVIT))


def clip(canvas: Canvas, patch: int, every: int) -> Plan:
    """CLIP's patches, dense in space, on every `every`-th frame."""
    if canvas.height_px < patch or canvas.width_px < patch:
        raise ValueError(f"size = {canvas.frame_size}: smaller than one {patch}x{patch} CLIP patch")
    return Plan(tubes=(_tube((1, patch, patch), (every, patch, patch), (0, 0, 0), canvas),))


def gated(canvas: Canvas, patch: int, every: int) -> Plan:
    """Both; with 16-pixel patches TubeViT's 2-D tube is a part of CLIP's, and is not stored twice."""
    return tubevit(canvas).union(clip(canvas, patch, every))


def vivit(canvas: Canvas, tubelet: tuple[int, int, int]) -> Plan:
    """ViViT's tubelets (arXiv:2103.15691, section 3.2): dense, without overlap. 32x224x224: 3,136 tokens."""
    if any(size < kernel for size, kernel in zip(canvas.shape, tubelet, strict=True)):
        t, h, w = tubelet
        raise ValueError(
            f"frames = {canvas.frames}, size = {canvas.frame_size}: smaller than one {t}x{h}x{w} tubelet"
        )
    return Plan(tubes=(_tube(tubelet, tubelet, (0, 0, 0), canvas),))


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
