"""What an input may cost at most, and what kind of file it may be. Whoever sends a video is not trusted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from pipeline.plan import Frozen

# What can decode beside the CPU: "cuda" is NVDEC.
Hardware = Literal["cuda"]

# Demuxers of files that hold their own pictures. Left out on purpose: whatever opens further files or
# addresses (hls, dash, concat, sdp, rtsp, imf), and whatever draws or records (lavfi, v4l2).
FORMATS = tuple(
    "mov matroska avi mpegts mpeg flv asf ogg gif apng h264 hevc vvc m4v mpegvideo mjpeg ivf obu nut mxf dv"
    " yuv4mpegpipe rm jpeg_pipe png_pipe webp_pipe webp bmp_pipe tiff_pipe gif_pipe jpegxl_pipe".split()
)


class Limits(Frozen):
    """Bounds for one input; one that breaks them becomes a row in `failures`, and costs no more than this.

    max_pixels: width x height of a picture, checked before memory for it is taken. A decoder holds up to
        17 pictures, so 8-bit 4:2:0 video of 36 million pixels (8K is 33 million) stays below 1 GB.
    max_bytes: of the file.
    max_seconds: from the first frame to the end of the last.
    timeout_seconds: of wall-clock time for one input, or for one part of a long one.
    formats: FFmpeg's names of the containers that are opened at all.
    """

    max_pixels: PositiveInt = 36_000_000
    max_bytes: PositiveInt = 64 << 30
    max_seconds: PositiveFloat = 24 * 3600.0
    timeout_seconds: PositiveFloat = 1800.0
    formats: Annotated[tuple[str, ...], Field(min_length=1)] = FORMATS
