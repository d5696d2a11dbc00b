"""Which AV1 frames nothing refers to, read from their headers (AV1 bitstream specification, 5.5 and 5.9).

A frame that refreshes no reference slot leaves no trace in the decoder: pixels, probabilities, motion and
segmentation are handed on by slots alone. So leaving it out is bit-exact; dav1d cannot be told to, not for
single packets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6  # types of units (OBUs), section 6.2.2
KEY, INTER, INTRA_ONLY, SWITCH = range(4)
CHOSEN = 2  # SELECT_SCREEN_CONTENT_TOOLS, SELECT_INTEGER_MV: each frame says for itself


class _Bits:
    """Reads a header bit by bit; past its end there are zeros."""

    def __init__(self, data: bytes):
        self._value, self._left = int.from_bytes(data, "big"), len(data) * 8

    def take(self, count: int) -> int:
        self._left -= count
        return self._value >> self._left & (1 << count) - 1 if self._left >= 0 else 0


@dataclass(frozen=True)
class Sequence:
    """What of a sequence header the frames' headers depend on."""

    screen_content_tools: int
    integer_mv: int
    order_hint_bits: int


class Skipper:
    """Tells, packet by packet, which ones may be left out; sequence headers are picked up on the way."""

    def __init__(self, extradata: bytes | None):
        self._sequence: Sequence | None = None
        self._look(list(_units((extradata or b"")[4:])))  # behind the four bytes of av1C

    def leaves_no_trace(self, packet: bytes) -> bool:
        """Whether a packet (a temporal unit) is one frame that nothing can refer to."""
        units = list(_units(packet))
        self._look(units)
        frames = [data for kind, data in units if kind in (FRAME_HEADER, FRAME)]
        return (
            self._sequence is not None and len(frames) == 1 and _refreshes_nothing(frames[0], self._sequence)
        )

    def _look(self, units: list[tuple[int, bytes]]) -> None:
        for kind, data in units:
            if kind == SEQUENCE_HEADER:
                self._sequence = _sequence(data)


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, the first bytes) of each unit, section 5.3."""
    at = 0
    while at < len(data):
        kind, extended, sized = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + extended
        size = len(data) - at
        if sized:
            size = shift = 0
            while at < len(data) and shift < 56:
                byte = data[at]
                size |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
                if byte < 128:
                    break
        yield kind, data[at : at + min(size, 64)]
        at += size


def _sequence(data: bytes) -> Sequence | None:
    """Section 5.5.1; None for the rare kinds whose frames say more before what is wanted here."""
    bits = _Bits(data)
    bits.take(3 + 1)  # profile, still picture
    if bits.take(1) or bits.take(1):  # a reduced header; timing information
        return None
    delays = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delays and bits.take(1):
            bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    bits.take(width_bits)
    bits.take(height_bits)
    if bits.take(1):  # frame ids
        return None
    bits.take(3 + 4)  # superblock size, intra tools; compound and motion tools
    ordered = bits.take(1)
    if ordered:
        bits.take(2)
    tools = CHOSEN if bits.take(1) else bits.take(1)
    integer_mv = CHOSEN
    if tools:
        integer_mv = CHOSEN if bits.take(1) else bits.take(1)
    return Sequence(tools, integer_mv, bits.take(3) + 1 if ordered else 0)


def _refreshes_nothing(data: bytes, sequence: Sequence) -> bool:
    """Section 5.9.2, up to refresh_frame_flags."""
    bits = _Bits(data)
    if bits.take(1):  # an earlier frame is shown
        return False
    kind, shown = bits.take(2), bits.take(1)
    if kind in (KEY, SWITCH) or not shown:
        return False
    resilient = bits.take(1)
    bits.take(1)  # whether probabilities adapt
    tools = bits.take(1) if sequence.screen_content_tools == CHOSEN else sequence.screen_content_tools
    if tools and sequence.integer_mv == CHOSEN:
        bits.take(1)
    bits.take(1 + sequence.order_hint_bits)  # another size, order
    if kind == INTER and not resilient:
        bits.take(3)
    return bits.take(8) == 0
