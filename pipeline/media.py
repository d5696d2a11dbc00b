"""Opening a video or image file (PyAV): one that may be hostile, under limits, and for one decoder a core."""

from __future__ import annotations

import functools
import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import av
import pyarrow as pa
from av.codec.hwaccel import HWAccel
from av.error import FFmpegError
from av.stream import Disposition
from pyarrow import fs as pafs

from pipeline.errors import MediaError, SpecError
from pipeline.limits import Hardware, Limits
from pipeline.storage import Location
from pipeline.tables import IMAGE_SUFFIXES, suffix_of

REMOTE_READ_BYTES = 1 << 20
IMAGE_FORMATS = {
    b"\xff\xd8": "jpeg_pipe",
    b"\x89PNG": "png_pipe",
    b"BM": "bmp_pipe",
    b"II*\0": "tiff_pipe",
    b"MM\0*": "tiff_pipe",
}
# From demuxing a damaged file; PyAV gives an IndexError where a stream turns up that its header did not name.
CANNOT_GO_ON = (FFmpegError, IndexError)

av.logging.set_level(av.logging.PANIC)  # errors come back as exceptions; FFmpeg's own text is noise


@dataclass(frozen=True)
class Probe:
    """What a file's header says, without decoding it. Headers lie; use it to estimate only."""

    format: str
    codec: str
    width_px: int
    height_px: int
    frames_per_second: float | None
    duration_seconds: float | None


class Media:
    """An open file and its picture stream.

    strict: let the decoder take what looks minor for an error; without, it hides damage where it can.
    """

    def __init__(self, location: Location, limits: Limits, strict: bool, hardware: Hardware | None = None):
        """Open a file; nothing of it is decoded but what FFmpeg needs to know its streams.

        Raises:
            MediaError: `unreadable`, `no_video` or `too_large`.
        """
        self._location, self.limits, self._strict, self._hardware = location, limits, strict, hardware
        self._expires = time.monotonic() + limits.timeout_seconds
        self.open()

    def open(self) -> None:
        """Open, or open again from the start."""
        self._file, self.container = _container(self._location, self.limits, self._hardware)
        try:
            self.stream = _picture_stream(self.container)
        except MediaError:
            self.close()
            raise
        context = self.stream.codec_context
        context.thread_type = "NONE"  # one decoder a core beats several threads a decoder
        context.thread_count = 1
        # The container's own limit does not reach this decoder.
        context.options = {"max_pixels": _ffmpegs(self.limits.max_pixels)}
        if self._strict:
            context.options = {**context.options, "err_detect": "explode"}
        if context.width * context.height > self.limits.max_pixels:
            self.close()
            raise self._too_large(context.width, context.height)

    def reopen(self) -> None:
        self.close()
        self.open()

    def close(self) -> None:
        self.container.close()
        if self._file is not None:
            self._file.close()

    def require_size(self, error: FFmpegError) -> None:
        """Raise MediaError `too_large` if that is why a decoder did not start: only its log says so."""
        said = re.search(r"\b(\d+)x(\d+)\b", str(error))
        if self.stream.codec_context.width == 0 and said:
            width, height = int(said[1]), int(said[2])
            if width * height > self.limits.max_pixels:
                raise self._too_large(width, height) from error

    def _too_large(self, width: int, height: int) -> MediaError:
        most = self.limits.max_pixels
        return MediaError("too_large", f"pictures of {width} x {height}, limits.max_pixels is {most}")

    def packets(self) -> Iterator[av.Packet]:
        """The picture stream's packets from where it stands, the empty one that flushes included.

        Raises:
            MediaError: `timeout`.
        """
        limit = self.limits.timeout_seconds
        for packet in self.container.demux(self.stream):
            if time.monotonic() > self._expires:
                raise MediaError("timeout", f"longer than limits.timeout_seconds = {limit:g}")
            yield packet


def probe(location: Location, limits: Limits | None = None) -> Probe:
    """Read a file's header. Raises MediaError like `Media`."""
    media = Media(location, limits or Limits(), strict=False)
    try:
        container, stream, duration = media.container, media.stream, None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / 1_000_000
        context, rate = stream.codec_context, stream.average_rate
        size = (context.width, context.height)
        return Probe(container.format.name, context.name, *size, float(rate) if rate else None, duration)
    finally:
        media.close()


def error_text(error: BaseException) -> str:
    """The error in a line, without the path: that has a column of its own."""
    text = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"


def _container(
    location: Location, limits: Limits, hardware: Hardware | None
) -> tuple[io.BufferedReader | None, av.container.InputContainer]:
    options = {
        "max_pixels": _ffmpegs(limits.max_pixels),
        "format_whitelist": ",".join(limits.formats),
        "protocol_whitelist": "file",
    }
    try:
        info = location.info()
        if info.type == pafs.FileType.NotFound:
            raise MediaError("unreadable", "no such file")
        if info.type != pafs.FileType.File:
            raise MediaError("unreadable", "not a regular file")  # opening a FIFO would wait for ever
        if not info.size:
            raise MediaError("unreadable", "the file is empty")
        if info.size > limits.max_bytes:
            raise MediaError("too_large", f"{info.size} bytes, limits.max_bytes is {limits.max_bytes}")
        accelerator = _accelerator(hardware)
        file = _file(location)
        source = file or f"file:{location.path}"
        kind = None if file is None else _image_format(file, location)
        try:
            return file, av.open(
                source, "r", kind, metadata_errors="replace", options=options, hwaccel=accelerator
            )
        except BaseException:
            if file is not None:
                file.close()
            raise
    except av.error.ArgumentError as error:
        allowed = "not in a format of limits.formats, or broken"
        raise MediaError("unreadable", f"{allowed} ({error_text(error)})") from error
    except (FFmpegError, OSError, pa.ArrowException) as error:
        raise MediaError("unreadable", error_text(error)) from error


def _file(location: Location) -> io.BufferedReader | None:
    """For what FFmpeg is not to open by its name."""
    # It would take an image named "%03d.jpg" for a pattern of many.
    if location.is_local and suffix_of(location.path) not in IMAGE_SUFFIXES:
        return None
    return io.BufferedReader(location.open(), REMOTE_READ_BYTES)


def _image_format(file: io.BufferedReader, location: Location) -> str | None:
    """An image's format by its first bytes: what follows its end, as in motion photos, misleads FFmpeg."""
    if suffix_of(location.path) not in IMAGE_SUFFIXES:
        return None
    head = file.peek(4)
    return next((kind for start, kind in IMAGE_FORMATS.items() if head.startswith(start)), None)


def _ffmpegs(max_pixels: int) -> str:
    """FFmpeg counts some pictures in whole blocks; what the header says is held to the limit itself."""
    return str(max_pixels + max_pixels // 8 + (1 << 16))


@functools.cache
def _accelerator(hardware: Hardware | None) -> HWAccel | None:
    """Raises SpecError where this node has no such device; a codec that it lacks is decoded in software."""
    if hardware is None:
        return None
    device = HWAccel(hardware, allow_software_fallback=True)
    try:
        device.create(av.Codec("h264", "r"))
    except FFmpegError as error:
        raise SpecError("resources.decode.hardware", hardware, f"not on this node ({error})") from None
    return device


def _picture_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream that is not a cover picture."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams or streams[0].codec_context is None:
        raise MediaError("no_video", "no video stream in it that can be decoded")
    return streams[0]
