"""A training run as one page: what was measured last, and every measure over the steps. SVG, no scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from jobs.metrics import Row
from jobs.web import document

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 220, 56, 26, 10
COLOURS = ("#2f7fc0", "#d1495b", "#36a04a", "#9068c9", "#c77d0a", "#808080")  # on white and on black


def page(title: str, rows: Sequence[Row]) -> str:
    """HTML of a run's metrics: {"step": steps done, name: value, ...} each."""
    last = {name: value for row in rows for name, value in row.items()}
    cells = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="number">{_short(value)}</td></tr>'
        for name, value in last.items()
    )
    charts = "".join(chart(name, lines) for name, lines in _groups(rows).items())
    body = f'<h1>{html.escape(title)}</h1><table>{cells}</table><div class="charts">{charts}</div>'
    return document(title, body)


def _groups(rows: Sequence[Row]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """{chart: {line: points}}: "accuracy/clips" is a line of the chart "accuracy"."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and not isinstance(value, str):
                chart_name, _, line = name.partition("/")
                points = found.setdefault(chart_name, {}).setdefault(line or chart_name, [])
                points.append((float(row["step"]), float(value)))
    return found


def chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A figure with lines over the steps; names stand below it where there are several."""
    points = [point for line in lines.values() for point in line if math.isfinite(point[1])]
    if not points:
        return ""
    right = max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    low = min(low, 0.0) if low < 0.3 * high else low
    span = (high - low) or abs(high) or 1.0

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - 12) * x / right
        return f"{across:.1f},{TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / span):.1f}"

    drawn, names = [], []
    for colour, (name, line) in zip(_cycle(len(lines)), lines.items(), strict=True):
        path = " ".join(place(x, y) for x, y in line if math.isfinite(y))
        drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>')
        names.append(f'<span style="color:{colour}">{html.escape(name)} {_short(line[-1][1])}</span>')
    axis = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(low + span * k / 4)}</text>'
        for k in range(5)
        for y in (TOP + (HEIGHT - TOP - BOTTOM) * (1 - k / 4),)
    )
    ends = (
        f'<text x="{LEFT}" y="{HEIGHT - 8}">0</text>'
        f'<text x="{WIDTH - 12}" y="{HEIGHT - 8}" text-anchor="end">step {right:,.0f}</text>'
    )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg width="{WIDTH}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{axis}{"".join(drawn)}{ends}</svg>'
        f"<div>{' &nbsp; '.join(names)}</div></figure>"
    )


def _cycle(count: int) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(count)]


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape(f"{value}")
