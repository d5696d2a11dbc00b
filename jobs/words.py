"""Durations, counts and sizes as people read them, on a terminal and on a page."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Such as 0.25 s, 12.3 s, 4 min 05 s, 2 h 07 min."""
    if seconds < 99.95:
        return f"{seconds:.{0 if not seconds else 2 if seconds < 1 else 1}f} s"
    seconds = round(seconds)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60:02} min"


def counted(count: int, noun: str) -> str:
    """Such as 1 file, 12,000 files."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Of bytes, such as 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
