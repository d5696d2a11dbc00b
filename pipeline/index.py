"""When each frame of a file is shown, and where decoding can begin: read from packets, without decoding.

Sorted, the timestamps of the packets that are not discarded are those of the frames that will come out.
Headers, frame counts and frame rates are not asked: they are wrong too often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError

from pipeline.errors import MediaError, Reason
from pipeline.media import CANNOT_GO_ON, Media, error_text
from pipeline.sampling import Reach, Timeline

# Containers that are sought by byte: by time, MPEG-TS lands late, and elementary streams have no times.
BY_BYTE = {"mpegts", "h264", "hevc"}
# Never sought: every packet of a GIF is marked as a key frame though each picture builds on the one before,
# and the pictures of MPEG-PS do not begin where its packets do.
IN_ORDER_ONLY = {"gif", "apng", "mpeg"}
# Elementary streams whose packets are checked to give a frame each, and so are counted undecoded.
COUNTABLE = {"h264", "hevc"}
CHECKED_PACKETS = 24
# No codec lets more frames than these be decoded before a frame and shown after it (H.264, A.3.1;
# H.265, A.4.1). So once 17 frames are read, the first of them in time is the first of all to come, and of
# any frames that are read only the last 16 in time may have unread ones between them.
REORDERED_FRAMES = 16


@dataclass(frozen=True)
class Index:
    """A file's timeline, or a part of it.

    keys: of the frames where decoding can begin, the pts; sorted.
    places: where their packets lie in the file, for containers that are sought by byte.
    counted: packets tell no times, so a frame is known by its number. `keys` are numbers then: those of the
        frames that nothing after them reaches past, none if frames could be counted only by decoding.
    tail_error: why the file could not be read to its end.
    """

    timeline: Timeline
    keys: np.ndarray
    places: np.ndarray | None = None
    counted: bool = False
    tail_error: str | None = None


def read_index(media: Media, reach: Reach | None) -> Index:
    """Index a file, or just the part that `reach` asks for where the file can be sought by time.

    Raises:
        MediaError: `corrupt` or `no_video` where no frame can be found, or `timeout`, `too_large`.
    """
    index = None
    # AVI stores no presentation times; with B-frames the ones made up for it are wrong.
    untimed = media.container.format.name == "avi" and media.stream.codec_context.has_b_frames
    if reach is not None and not untimed and media.container.format.name not in BY_BYTE | IN_ORDER_ONLY:
        try:
            index = _read_part(media, reach)
        except CANNOT_GO_ON:
            index = None
        if index is None:
            media.reopen()
    if index is None and not untimed:
        index = _read_all(media)
    if index is None:
        index = _count_packets(media) or _count_frames(media)
    line = index.timeline
    seconds = float((line.end_pts - line.origin_pts) * line.time_base)
    if seconds > media.limits.max_seconds:
        most = f"limits.max_seconds is {media.limits.max_seconds:g}"
        raise MediaError("too_large", f"lasts {seconds:.0f} s, {most}")
    return index


class _Stamps:
    """The timestamps of packets as they are read; `timed` while each of them has one."""

    def __init__(self, media: Media):
        self._hides_frames = media.stream.codec_context.name == "vp8"
        self.timed = True
        self.pts: list[int] = []
        self.latest = 0
        self.keys: dict[int, int | None] = {}  # pts -> byte position
        self.end_pts = 0

    def add(self, packet: av.Packet) -> None:
        pts = packet.pts
        if pts is None:
            self.timed = False
            return
        self.latest = pts
        if packet.is_keyframe:
            self.keys.setdefault(pts, packet.pos)
        # A VP8 packet may hold a frame that is only referred to, never shown: bit 4 of its header.
        if packet.is_discard or (self._hides_frames and not bytes(packet)[0] & 0x10):
            return
        self.pts.append(pts)
        self.end_pts = max(self.end_pts, pts + (packet.duration or 0))


def _read_all(media: Media) -> Index | None:
    """Every packet of the file; None where they lack timestamps, or share them."""
    stamps, tail_error = _Stamps(media), None
    try:
        for packet in media.packets():
            if packet.size:
                stamps.add(packet)
                if not stamps.timed:
                    return None
    except CANNOT_GO_ON as error:
        tail_error = error_text(error)
    pts = np.unique(np.array(stamps.pts, dtype=np.int64))
    if not len(pts) or len(pts) < len(stamps.pts):
        return None
    places = None
    keys = sorted(stamps.keys)
    if media.container.format.name in BY_BYTE:
        keys = [key for key in keys if stamps.keys[key] is not None]
        places = np.array([stamps.keys[key] for key in keys], dtype=np.int64)
    elif media.container.format.name in IN_ORDER_ONLY:
        keys = []
    return Index(_timeline(media, pts, stamps.end_pts), np.array(keys, np.int64), places, False, tail_error)


def _read_part(media: Media, reach: Reach) -> Index | None:
    """The packets of a part; None where the file cannot be sought well enough for that."""
    tick = media.stream.time_base
    assert tick is not None
    head = _Stamps(media)
    for packet in media.packets():
        if not packet.size:
            return None  # a few frames: no part is worth it
        head.add(packet)
        if len(head.pts) > REORDERED_FRAMES or not head.timed:
            break
    if not head.timed:
        return None
    origin = min(head.pts)
    begin = origin + math.floor(reach.start_seconds / tick) - 1
    end = math.inf if math.isinf(reach.end_seconds) else origin + math.ceil(reach.end_seconds / tick) + 1
    media.container.seek(begin, stream=media.stream)
    stamps, first_key, past_end, complete = _Stamps(media), None, 0, False
    for packet in media.packets():
        if not packet.size:
            complete = True
            break
        stamps.add(packet)
        if not stamps.timed:
            return None
        if first_key is None:
            first_key = stamps.latest
            if not packet.is_keyframe or first_key > max(begin, origin):
                return None
        past_end += stamps.latest > end
        if past_end > REORDERED_FRAMES + reach.more_frames + 1:
            break
    pts = np.unique(np.array(stamps.pts, dtype=np.int64))
    if first_key is None or len(pts) < len(stamps.pts):
        return None
    keys = np.array(sorted(key for key in stamps.keys if key >= first_key), np.int64)
    # Frames shown before the first key frame may build on what was not read; the last ones may have gaps.
    known = pts[pts >= max(first_key, origin)]
    if complete:
        return Index(_timeline(media, known, stamps.end_pts, origin), keys) if len(known) else None
    known = known[:-REORDERED_FRAMES]
    return Index(Timeline(known[:-1], int(known[-1]), tick, origin, ends=False), keys)


def _count_packets(media: Media) -> Index | None:
    """Number the frames by their packets; None where the first ones do not give a frame each."""
    if media.stream.codec_context.name not in COUNTABLE:
        return None
    media.reopen()
    context, by_byte = media.stream.codec_context, media.container.format.name in BY_BYTE
    keys, places, count, shown, tail_error = [], [], 0, 0, None
    try:
        for packet in media.packets():
            if not packet.size:
                break
            if count < CHECKED_PACKETS:
                shown += len(packet.decode())
            if packet.is_keyframe and _starts_anew(packet, context.name):
                keys.append(count)
                places.append(-1 if packet.pos is None else packet.pos)
            count += 1
        shown += len(context.decode(None)) if count <= CHECKED_PACKETS else CHECKED_PACKETS - shown
    except CANNOT_GO_ON as error:
        if count < CHECKED_PACKETS:
            return None
        tail_error = error_text(error)
    if not count or shown != min(count, CHECKED_PACKETS):
        return None
    line = Timeline(np.arange(count), count, 1 / _rate(media))
    sought = np.array(places, np.int64) if by_byte and -1 not in places else None
    return Index(line, np.array(keys, np.int64), sought, True, tail_error) if keys else None


def _starts_anew(packet: av.Packet, codec: str) -> bool:
    """Whether nothing after this packet refers to, or is shown, before it: an IDR picture (Annex B)."""
    data, at = bytes(packet), 0
    while (at := data.find(b"\0\0\1", at) + 3) >= 3 and at < len(data):
        kind = data[at] & 31 if codec == "h264" else data[at] >> 1 & 63
        if kind == 5 if codec == "h264" else kind in (19, 20):
            return True
        if kind in (1, 2) if codec == "h264" else kind < 19:
            return False
    return False


def _count_frames(media: Media) -> Index:
    """For streams whose packets tell nothing: see what comes out."""
    media.reopen()
    pts: list[int | None] = []
    tail_error = None
    try:
        for packet in media.packets():
            try:
                pts.extend(frame.pts for frame in packet.decode())
            except FFmpegError as error:
                tail_error = error_text(error)
    except CANNOT_GO_ON as error:
        tail_error = error_text(error)
    if not pts:
        reason: Reason = "corrupt" if tail_error else "no_video"
        raise MediaError(reason, tail_error or "no frame comes out of its video stream")
    stamps = np.array([-1 if p is None else p for p in pts], dtype=np.int64)
    if any(p is None for p in pts) or (np.diff(stamps) <= 0).any():
        line = Timeline(np.arange(len(pts)), len(pts), 1 / _rate(media))
    else:
        line = _timeline(media, stamps, 0)
    return Index(line, np.empty(0, np.int64), None, True, tail_error)


def _timeline(media: Media, pts: np.ndarray, end_pts: int, origin_pts: int | None = None) -> Timeline:
    tick = media.stream.time_base
    assert tick is not None
    if end_pts <= pts[-1]:  # no durations in the file
        usual = int(np.median(np.diff(pts))) if len(pts) > 1 else 0
        end_pts = int(pts[-1]) + max(1, usual or round(1 / _rate(media) / tick))
    return Timeline(pts, end_pts, tick, origin_pts)


def _rate(media: Media) -> Fraction:
    return Fraction(media.stream.average_rate or media.stream.guessed_rate or 25)
