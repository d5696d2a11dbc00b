"""How much damage is noticed: bits flipped in a file's packets, every frame compared with the sound file.

    python -m benchmarks.damage [--media DIR] [--rounds 20]

A decoder notices what breaks its syntax and delivers the rest, so this is what to know of files from bad
disks: H.264 and AV1 give damage away; most of it passes HEVC and VP9, which carry no checksums, as it does in
any player.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.media import CODECS, video
from pipeline.storage import locate
from pipeline.video import Video

PACKETS, FLIPS = 3, 3  # packets that are hit, and bits flipped in each
HEADER_BYTES = 12  # of a packet, left alone: damage there is noticed in any codec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--media", type=Path, default=Path(tempfile.gettempdir()) / "tubelet-media")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    table = Table(title=f"{PACKETS} packets with {FLIPS} flipped bits each, {arguments.rounds} times a codec")
    for column in ("360p, 250 frames", "frames", "differ", "noticed", "delivered", "lost though sound"):
        table.add_column(column, justify="right")
    for codec in CODECS:
        counts = np.zeros(4, int)
        path = video(arguments.media, "360p", codec, 250)
        sound = digests(path)
        for seed in range(arguments.rounds):
            counts += compare(path, sound, seed)
        frames, delivered, noticed, sound_lost = counts
        table.add_row(
            codec, *(f"{n:,}" for n in (frames, delivered + noticed, noticed, delivered, sound_lost))
        )
    Console().print(table)


def compare(path: Path, sound: list[int | None], seed: int) -> np.ndarray:
    """(frames, wrong ones delivered, wrong ones withheld, right ones withheld) of one damaged copy."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(flipped(path, np.random.default_rng(seed)))
        kept = digests(copy, keep=True)
        given = digests(copy)
    wrong = [k != s for k, s in zip(kept, sound, strict=True)]
    pairs = list(zip(given, wrong, strict=True))
    delivered = sum(g is not None and g != s for g, s in zip(given, sound, strict=True))
    noticed = sum(g is None and w for g, w in pairs)
    return np.array([len(sound), delivered, noticed, sum(g is None and not w for g, w in pairs)])


def flipped(path: Path, rng: np.random.Generator) -> bytes:
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size > 2 * HEADER_BYTES]
    data = bytearray(path.read_bytes())
    for hit in rng.choice(len(packets), PACKETS, replace=False):
        position, size = packets[hit]
        assert position is not None
        for _ in range(FLIPS):
            data[position + int(rng.integers(HEADER_BYTES, size))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def digests(path: Path, keep: bool = False) -> list[int | None]:
    """A number for the picture of each frame; None where there is none."""
    with Video(locate(str(path)), keep_damaged=keep) as opened:
        shots = opened.frames(range(len(opened.timeline.pts)))
        return [None if s.frame is None else hash(s.frame.to_ndarray().tobytes()) for s in shots]


if __name__ == "__main__":
    main()
