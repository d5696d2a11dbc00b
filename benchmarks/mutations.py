"""Damage to media files, each with a name that stands for its bytes: `<source>-<kind>-<number><suffix>`.

Same name, seed and sources: same bytes. `python -m benchmarks.fuzz --make NAME` writes one and reads it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
CLIPS = ROOT / "tests" / "resources"
REAL = ROOT.parent / "shared" / "data"
REAL_FOLDERS = "codecs mixed_clips weizmann4 asl_words bad".split()
SOURCE_BYTES = range(256, 3 << 20)
FOLDER_FILES = 24  # of each folder of sources, evenly spread: many of them are alike

# A file's bytes, a source of chance, another file's bytes -> bytes; None if it does not apply to such a file.
Mutate = Callable[[bytes, Random, bytes], bytes | None]


class Box(NamedTuple):
    """An MP4 atom, a Matroska element or a RIFF chunk."""

    kind: bytes
    start: int
    size_at: int
    body: int
    stop: int
    encode: Callable[[int], bytes]  # a length, as its length field has it


def atom(data: bytes, start: int) -> Box:
    size = int.from_bytes(data[start : start + 4], "big")
    if size == 1:
        stop = start + int.from_bytes(data[start + 8 : start + 16], "big")
        return Box(data[start + 4 : start + 8], start, start + 8, start + 16, stop, _big(8))
    return Box(data[start + 4 : start + 8], start, start, start + 8, start + size or len(data), _big(4))


def element(data: bytes, start: int) -> Box:
    size_at = start + max(1, 9 - data[start].bit_length())
    width = max(1, 9 - data[size_at : size_at + 1].ljust(1)[0].bit_length())
    marker = 1 << 7 * width
    size = int.from_bytes(data[size_at : size_at + width], "big") & (marker - 1)
    stop = len(data) if size == marker - 1 else size_at + width + size
    name = data[start:size_at]
    return Box(name, start, size_at, size_at + width, stop, lambda n: _big(width)(n % marker | marker))


def chunk(data: bytes, start: int) -> Box:
    size = int.from_bytes(data[start + 4 : start + 8], "little")
    body = start + 12 if data[start : start + 4] in {b"RIFF", b"LIST"} else start + 8
    stop = start + 8 + size + size % 2
    return Box(data[start : start + 4], start, start + 4, body, stop, lambda n: _big(4)(n)[::-1])


def _big(width: int) -> Callable[[int], bytes]:
    return lambda n: (n % (1 << 8 * width)).to_bytes(width, "big")


PARSERS = ((b"\x1a\x45\xdf\xa3", 0, element), (b"RIFF", 0, chunk), (b"ftyp", 4, atom))
NESTED = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"RIFF", b"LIST"}
NESTED |= {bytes.fromhex(n) for n in "18538067 1654ae6b ae e0 1f43b675 a0 114d9b74 1c53bb6b bb b7".split()}
MEDIA = {b"mdat", b"movi", b"\x1f\x43\xb6\x75"}


def boxes(data: bytes) -> list[Box]:
    """All boxes of a file, outer ones before those in them; none if it is not made of boxes."""
    for magic, at, parse in PARSERS:
        if data[at : at + len(magic)] == magic:
            return list(_walk(data, parse, 0, len(data)))
    return []


def _walk(data: bytes, parse: Callable[[bytes, int], Box], start: int, stop: int) -> Iterator[Box]:
    while start + 8 < stop:
        box = parse(data, start)
        if not start < box.body <= box.stop:
            return
        box = box._replace(stop=min(box.stop, stop))
        yield box
        if box.kind in NESTED:
            yield from _walk(data, parse, box.body, box.stop)
        start = box.stop


def media(data: bytes) -> tuple[int, int]:
    """Where a file's compressed pictures lie: in its largest box of them, or else behind its first 4 kB."""
    spans = [(b.body, b.stop) for b in boxes(data) if MEDIA & {b.kind, data[b.body - 4 : b.body]}]
    start, stop = max(spans, key=lambda span: span[1] - span[0], default=(0, 0))
    return (start, stop) if start < stop else (min(4096, len(data) // 4), len(data))


def _some(found: list[Box], rng: Random) -> Box:
    """A box of a kind: there are thousands of blocks, and one header."""
    kind = rng.choice(sorted({box.kind for box in found}))
    return rng.choice([box for box in found if box.kind == kind])


def flip(data: bytes, rng: Random, start: int, stop: int) -> bytes:
    out = bytearray(data)
    for _ in range(max(1, round((stop - start) * 8 * 10 ** rng.uniform(-5, -3)))):
        out[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
    return bytes(out)


def headflips(data: bytes, rng: Random, _: bytes) -> bytes:
    start, stop = media(data)
    return flip(data, rng, *((stop, len(data)) if len(data) - stop > start else (0, min(start, 4096))))


def span(data: bytes, rng: Random) -> tuple[int, int]:
    """A stretch of a file, of any order of magnitude."""
    start = rng.randrange(len(data))
    return start, min(len(data), start + round(len(data) ** rng.uniform(0, 1)))


def zeros(data: bytes, rng: Random, _: bytes) -> bytes:
    start, stop = span(data, rng)
    return data[:start] + bytes(stop - start) + data[stop:]


def nomiddle(data: bytes, rng: Random, _: bytes) -> bytes:
    start, stop = span(data, rng)
    return data[:start] + data[stop:]


def doubled(data: bytes, rng: Random, _: bytes) -> bytes:
    start, stop = span(data, rng)
    return data[:stop] + data[start:]


def inserted(data: bytes, rng: Random, _: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.randrange(1, 5000)) + data[start:]


def splice(data: bytes, rng: Random, donor: bytes) -> bytes:
    at = rng.choice([media(donor)[0], rng.randrange(16, 4096)])
    return donor[:at] + data[rng.choice([at, media(data)[0]]) :]


def boxswap(data: bytes, rng: Random, _: bytes) -> bytes | None:
    if len(found := boxes(data)) < 3:
        return None
    one, other = sorted((_some(found, rng), _some(found, rng)), key=lambda box: box.start)
    if one.stop > other.start:  # one is in the other
        return data[: one.start] + data[other.start : other.stop] + data[one.stop :]
    between = data[one.stop : other.start]
    swapped = data[other.start : other.stop] + between + data[one.start : one.stop]
    return data[: one.start] + swapped + data[other.stop :]


def boxcopy(data: bytes, rng: Random, _: bytes) -> bytes | None:
    if not (found := boxes(data)):
        return None
    copied, place = _some(found, rng), _some(found, rng)
    return data[: place.start] + data[copied.start : copied.stop] + data[place.start :]


def boxdrop(data: bytes, rng: Random, _: bytes) -> bytes | None:
    if not (found := boxes(data)):
        return None
    box = _some(found, rng)
    return data[: box.start] + data[box.stop :]


def boxsize(data: bytes, rng: Random, _: bytes) -> bytes | None:
    """Lengths that lie: 0, one byte off, twice, without end; in MP4 a 1 says "64 bits follow"."""
    if not (found := boxes(data)):
        return None
    box = _some(found, rng)
    true = box.stop - box.start
    lie = rng.choice([0, 1, 2, 8, true - 1, true + 1, 2 * true, 2**31 - 1, 2**32 - 1, 2**56 - 2, 2**56 - 1])
    data = _put(data, box.size_at, size := box.encode(lie))
    if size == b"\0\0\0\x01":
        data = _put(data, box.body, rng.choice([0, 15, 2**31, 2**62, 2**63, 2**64 - 1]).to_bytes(8, "big"))
    return data


def _put(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece) :]


# What is written over: (a mark, bytes from its end, how many). A mark met by chance makes noise of it.
FIELDS = {
    "picture": (
        (b"tkhd", 76, 8), (b"tkhd", 40, 36), (b"pasp", 0, 8), (b"avcC", 8, 10), (b"hvcC", 23, 60),
        *((code, 24, 4) for code in (b"avc1", b"hvc1", b"hev1", b"mp4v", b"vp09", b"av01")),
        (b"\x9d\x01\x2a", 0, 4), (b"\x49\x83\x42", 0, 5), (b"\xff\xc0", 3, 4), (b"\xff\xc2", 3, 4),
        (b"\xff\xc0", 7, 10), (b"\0\0\x01\x67", 0, 12), (b"\0\0\x01\x42", 2, 30), (b"\0\0\x01\x20", 0, 9),
        (b"\xb0\x82", 0, 2), (b"\xba\x82", 0, 2), (b"\x63\xa2", 8, 12), (b"\x0a\x0b\0\0", 0, 8),
        (b"strf", 8, 8), (b"avih", 36, 8), (b"GIF89a", 0, 4), (b"\x21\xf9\x04", 6, 8), (b"esds", 4, 40),
    ),
    "times": (
        (b"stts", 8, 8), (b"stts", 12, 4), (b"ctts", 8, 8), (b"ctts", 12, 4), (b"mdhd", 12, 8),
        (b"mvhd", 12, 8), (b"elst", 8, 12), (b"stss", 8, 4), (b"tkhd", 20, 4), (b"\x2a\xd7\xb1\x83", 0, 3),
        (b"\x44\x89\x88", 0, 8), (b"\xe7\x82", 0, 2), (b"\xe7\x81", 0, 1), (b"\x23\xe3\x83\x84", 0, 4),
        (b"avih", 4, 4), (b"strh", 24, 8), (b"strh", 32, 8), (b"\0\0\x01\xe0", 5, 10),
        (b"\0\0\x01\x67", 12, 12), (b"\x21\xf9\x04", 1, 2),
    ),
    "counts": (
        (b"stts", 4, 4), (b"ctts", 4, 4), (b"stss", 4, 4), (b"stsc", 4, 16), (b"stsz", 4, 8),
        (b"stsz", 12, 4), (b"stco", 4, 8), (b"stsd", 4, 4), (b"dref", 4, 4), (b"elst", 4, 4),
        (b"idx1", 0, 24), (b"avih", 20, 12), (b"strh", 36, 8), (b"\0\0\x01\x68", 0, 6), (b"\x47\x40", 0, 12),
        (b"\xd7\x81", 0, 1), (b"\x83\x81", 0, 1), (b"\xff\xc4", 0, 20), (b"\xff\xdb", 0, 4),
        (b"\xff\xda", 0, 8),
    ),
}  # fmt: skip
LIES = (b"\0", b"\xff", b"\x7f\xff", b"\x80\0", b"\x20\0", b"\x3f\xff", b"\0\x01", b"\0\0\0\x01")


def overwrite(fields: tuple[tuple[bytes, int, int], ...]) -> Mutate:
    def mutate(data: bytes, rng: Random, _: bytes) -> bytes | None:
        places = [
            (rng.choice([found[0], rng.choice(found)]) + offset, width)
            for mark, offset, width in fields
            if (found := [match.end() for match in re.finditer(re.escape(mark), data)])
        ]
        for start, width in rng.sample(places, min(len(places), rng.choice([1, 1, 2, 3]))):
            lie = (rng.choice([*LIES, rng.randbytes(width)]) * width)[:width]
            data = _put(data, start, lie)
        return data if places else None

    return mutate


# What FFmpeg would follow to other files, to the network or to itself, and pictures of gigabytes in a line.
TEXTS = (
    "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{other}\n#EXT-X-ENDLIST\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{name}\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
    "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{name}\n",
    "ffconcat version 1.0\nfile '{other}'\nduration 2\nfile '{other}'\n",
    "ffconcat version 1.0\nfile '{name}'\nfile '{name}'\n",
    "ffconcat version 1.0\nfile http://127.0.0.1:9/x.mp4\n",
    "v=0\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ";FFMETADATA1\ntitle=x\n[CHAPTER]\nTIMEBASE=1/0\nSTART=0\nEND=-1\ntitle=y\n",
    '<?xml version="1.0"?><MPD type="static"><Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="1"><BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "<!DOCTYPE html><html><body><video src='{other}'></video></body></html>",
    "YUV4MPEG2 W30000 H30000 F25:1 Ip A0:0 C420jpeg\nFRAME\n",
    "P6\n60000 60000\n255\n",
    "WEBVTT\n\n00:00.000 --> 99:59.000\nx\n",
)


def text(data: bytes, rng: Random, _: bytes) -> bytes:
    return rng.choice(TEXTS).encode()


KINDS: dict[str, Mutate] = {
    "bitflips": lambda data, rng, _: flip(data, rng, 0, len(data)),
    "mediaflips": lambda data, rng, _: flip(data, rng, *media(data)),
    "headflips": headflips,
    "zeros": zeros,
    "nohead": lambda data, rng, _: data[span(data, rng)[1] :],
    "notail": lambda data, rng, _: data[: rng.randrange(len(data))],
    "nomiddle": nomiddle,
    "doubled": doubled,
    "inserted": inserted,
    "appended": lambda data, rng, donor: data + rng.choice([donor, rng.randbytes(5000), bytes(5000)]),
    "splice": splice,
    "boxswap": boxswap,
    "boxcopy": boxcopy,
    "boxdrop": boxdrop,
    "boxsize": boxsize,
    **{kind: overwrite(fields) for kind, fields in FIELDS.items()},
    "text": text,
    "special": lambda data, rng, _: rng.choice([b"fifo", b"endless", b"nowhere", b"itself", b""]),
}


def sources(real: bool = True) -> dict[str, bytes]:
    """Sound files (and a few bad ones) by name."""
    found: dict[str, bytes] = {}
    for folder in (CLIPS, *(REAL / name for name in REAL_FOLDERS if real)):
        files = [p for p in sorted(folder.rglob("*")) if p.suffix != ".py" and p.is_file()]
        files = [path for path in files if path.stat().st_size in SOURCE_BYTES]
        found |= {path.name: path.read_bytes() for path in files[:: -(-len(files) // FOLDER_FILES) or 1]}
    return found


def mutate(name: str, files: dict[str, bytes], seed: int) -> bytes | None:
    """The bytes that a mutation's name stands for; None if its kind does not apply to its source."""
    path = Path(name)
    source, kind, _ = path.stem.rsplit("-", 2)
    rng = Random(f"{seed}/{name}")
    donor = files[rng.choice(sorted(files))]
    made = KINDS[kind](files[source + path.suffix], rng, donor)
    if kind == "text" and made is not None:
        made = made.replace(b"{name}", name.encode()).replace(b"{other}", b"h264_bframes.mp4")
    return made


def names(files: dict[str, bytes], count: int, seed: int) -> Iterator[str]:
    """`count` mutations: the kinds in turn, and equally often the formats that a kind applies to."""
    for number in range(count):
        kind, rng = [*KINDS][number % len(KINDS)], Random(f"{seed}/{number}")
        format_ = rng.choice(sorted({Path(name).suffix for name in files}))
        shuffled = rng.sample(sorted(files), len(files))
        for source in sorted(map(Path, shuffled), key=lambda path: path.suffix != format_):
            name = f"{source.stem}-{kind}-{number:04d}{source.suffix}"
            if mutate(name, files, seed) is not None:
                yield name
                break


def make(name: str, files: dict[str, bytes], seed: int, folder: Path) -> None:
    path, made = folder / name, mutate(name, files, seed)
    assert made is not None, f"{name}: this kind does not apply to this source"
    if "-special-" not in name or not made:
        path.write_bytes(made)
    elif made == b"fifo":
        os.mkfifo(path)
    else:
        path.symlink_to({b"endless": "/dev/zero", b"nowhere": "nowhere.mp4", b"itself": name}[made])


def kind_of(name: str) -> str:
    return kind if (kind := name.rsplit("-", 2)[-2:][0]) in KINDS else "intact"
