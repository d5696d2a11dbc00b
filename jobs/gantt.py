"""A run's timeline, drawn: which workers had a unit when, and how many clips a second came of it.

Drawings are stretched to the room that a page has for them, so what is text stands beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from jobs.timeline import Timeline, spread
from jobs.words import counted, duration

LANES = 16  # of a stage at most: more workers are shown host by host, and more hosts as one
PIECES = 600  # more pieces of work than this are shown as how busy a lane was
BINS = 150  # of time
SHADES = 5  # of how busy a lane was
WIDTH, HEIGHT = 1000, 10  # of a drawing before it is stretched
SHOWN = 0.01  # a tail that is a smaller share of the time is not shaded


def lanes(timeline: Timeline, tail_seconds: float) -> str:
    """A lane for each worker of each stage, or for several; at its end, which share of the time it was busy.

    Args:
        tail_seconds: of the last call; it is shaded.
    """
    drawn = []
    tail = tail_seconds if tail_seconds > SHOWN * timeline.seconds else 0.0
    for number, stage in enumerate(timeline.stages):
        pieces = np.flatnonzero(timeline.stage == number)
        workers = counted(len(np.unique(timeline.worker[pieces])), "worker")
        said = f'<span class="soft">{workers}, {counted(len(pieces), "unit")}</span>'
        drawn.append(f'<div class="stage">{escape(stage)} {said}</div>')
        for label, those in _shared_out(timeline, pieces):
            drawn.append(_lane(timeline, label, those, f"var(--{'second' if number else 'first'})", tail))
    drawn.append(_axis(timeline))
    if tail:
        drawn.append(f'<div class="key">the shaded {duration(tail)} at the end are the tail</div>')
    if timeline.pauses:
        said = "dashed lines are pauses between calls, which are left out"
        drawn.append(f'<div class="key">{said}</div>')
    return "".join(drawn)


def _shared_out(timeline: Timeline, pieces: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(label, pieces of work) of each lane: of a worker, of a host, or of all, whatever makes few enough."""
    workers = np.array(timeline.workers, object)[timeline.worker[pieces]]
    hosts = np.array([name.rpartition(":")[0] for name in workers], object)
    for labels in (workers, hosts):
        distinct = sorted(set(labels.tolist()))
        if len(distinct) <= LANES:
            return [(label, pieces[labels == label]) for label in distinct]
    return [(counted(len(set(hosts.tolist())), "host"), pieces)]


def _lane(timeline: Timeline, label: str, pieces: np.ndarray, colour: str, tail_seconds: float) -> str:
    workers = len(np.unique(timeline.worker[pieces]))
    begun, ended = timeline.begun[pieces], timeline.ended[pieces]
    exact = len(timeline) <= PIECES
    marks = _pieces(timeline, pieces) if exact else _shades(timeline.seconds, begun, ended, workers)
    tail = WIDTH * tail_seconds / timeline.seconds
    shade = f'<rect x="{WIDTH - tail:.1f}" width="{tail:.1f}" height="{HEIGHT}" fill="var(--line)"/>'
    pauses = "".join(
        f'<path class="mark" d="M{WIDTH * at / timeline.seconds:.1f} 0V{HEIGHT}"/>' for at in timeline.pauses
    )
    busy = (ended - begun).sum() / (workers * timeline.seconds)
    host, colon, process = label.rpartition(":")
    return (
        f'<div class="lane"><span class="name" title="{escape(label)}"><span>{escape(host or label)}</span>'
        f"<span>{escape(colon + process if host else '')}</span></span>"
        + _svg(f'{shade if tail else ""}<g fill="{colour}">{"".join(marks)}</g>{pauses}')
        + f'<span class="number">{busy:.0%}</span></div>'
    )


def _pieces(timeline: Timeline, pieces: np.ndarray) -> Iterator[str]:
    """Each piece of work; neighbours are told apart by their strength."""
    scale = WIDTH / timeline.seconds
    for k, i in enumerate(pieces[np.argsort(timeline.begun[pieces])].tolist()):
        begun, seconds = timeline.begun[i], timeline.ended[i] - timeline.begun[i]
        yield (
            f'<rect x="{begun * scale:.1f}" width="{max(1.0, seconds * scale):.1f}" height="{HEIGHT}" '
            f'fill-opacity="{0.65 if k % 2 else 0.95}">'
            f"<title>unit {timeline.unit[i]}: {duration(seconds)}</title></rect>"
        )


def _shades(seconds: float, begun: np.ndarray, ended: np.ndarray, workers: int) -> Iterator[str]:
    """How busy a lane was; neighbours that are alike are one mark."""
    edges = np.linspace(0, seconds, BINS + 1)
    busy = spread(edges, begun, ended, ended - begun) / (np.diff(edges) * workers)
    shades = np.ceil(np.clip(busy, 0, 1) * SHADES - 1e-6).astype(int)
    starts = np.flatnonzero(np.diff(shades, prepend=-1))
    for a, b in zip(starts.tolist(), [*starts[1:].tolist(), BINS], strict=True):
        if shades[a]:
            yield (
                f'<rect x="{a * WIDTH / BINS:.1f}" width="{(b - a) * WIDTH / BINS:.1f}" '
                f'height="{HEIGHT}" fill-opacity="{shades[a] / SHADES:.1f}"/>'
            )


def throughput(timeline: Timeline) -> str:
    """Clips a second over time; those of a unit are spread over the time that its last stage took."""
    edges = np.linspace(0, timeline.seconds, BINS + 1)
    rate = spread(edges, timeline.begun, timeline.ended, timeline.clips) / np.diff(edges)
    top, mean = float(rate.max()), float(timeline.clips.sum() / timeline.seconds)
    heights = (HEIGHT * (1 - rate / top)).tolist()
    steps = "".join(f"V{y:.2f}H{(i + 1) * WIDTH / BINS:.1f}" for i, y in enumerate(heights))
    marks = (
        f'<path d="M0 {HEIGHT}{steps}V{HEIGHT}Z" fill="var(--second)" fill-opacity=".75"/>'
        f'<path class="mark" d="M0 {HEIGHT * (1 - mean / top):.2f}H{WIDTH}"/>'
    )
    ticks = "".join(f"<span>{value:,.3g}</span>" for value in (top, top / 2, 0))
    return (
        f'<div class="lane plot"><span class="ticks">{ticks}</span>{_svg(marks)}<span></span></div>'
        f'{_axis(timeline)}<div class="key">dashed: {mean:,.3g} on an average</div>'
    )


def _svg(marks: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">{marks}</svg>'


def _axis(timeline: Timeline) -> str:
    ticks = "".join(f"<span>{duration(timeline.seconds * k / 4)}</span>" for k in range(5))
    return f'<div class="lane"><span></span><div class="axis">{ticks}</div><span></span></div>'
