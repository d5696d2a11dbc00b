"""report.html of a run: its numbers, when its workers did what, what failed, some of what it made."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import pyarrow as pa

from jobs import gantt
from jobs.report import FailureGroup, Report, grouped
from jobs.thumbnails import Thumbnail
from jobs.timeline import Timeline
from jobs.web import document
from jobs.words import counted, duration, size

EXAMPLES = 3
PARTS = {
    "decode": ("decoding", "var(--first)"),
    "model": ("model", "var(--second)"),
    "wait": ("model, waiting for its input", "var(--idle)"),
}


def page(
    report: Report, timeline: Timeline, failures: pa.Table, samples: Sequence[Thumbnail], spec: str
) -> str:
    """The page, HTML.

    Args:
        timeline: of all units that count.
        failures: the rows that hold (schema: pipeline.shards.FAILURES).
        spec: as YAML.
    """
    title = f"{report.kind}: {report.model or 'shards'}"
    body = [
        f'<h1>{escape(title)}</h1><div class="soft">{escape(report.output)}</div>',
        *(f'<div class="note">{escape(note)}</div>' for note in report.notes),
        f'<div class="cards">{"".join(_cards(report))}</div>',
    ]
    if report.estimate:
        lines = "".join(f"<li>{escape(line)}</li>" for line in report.hindsight())
        body.append(f"<h2>The estimate</h2><ul>{lines}</ul>")
    if report.model is not None and any(report.split.values()):
        body.append(f"<h2>Workers' time</h2>{_split(report)}")
    if len(timeline):
        body.append(f"<h2>Who had a unit when</h2>{gantt.lanes(timeline, report.tail_seconds)}")
    if timeline.clips.any():
        body.append(f"<h2>Clips a second</h2>{gantt.throughput(timeline)}")
    if failures.num_rows:
        body.append(f"<h2>Failures</h2>{_failures(failures, report.output)}")
    if samples:
        body.append(f'<h2>Some of the clips</h2><div class="samples">{"".join(map(_sample, samples))}</div>')
    return document(title, "".join([*body, f"<h2>Spec</h2><pre>{escape(spec)}</pre>"]))


def _cards(report: Report) -> Iterator[str]:
    """The numbers that matter most."""
    new = "" if report.new_clips == report.clips else f", {report.new_clips:,} new"
    yield _card(f"{report.clips:,}", f"clips{new}")
    yield _card(f"{report.inputs:,}", report.inputs_are)
    lost = (
        f"failures; {counted(report.failed_inputs, 'input')} gave nothing" if report.failures else "failures"
    )
    yield _card(f"{report.failures:,}", lost, alert=report.failures > 0)
    yield _card(f"{report.clips_per_second:,.2f}", f"clips/s over {duration(report.wall_seconds)}")
    if report.video_seconds:
        yield _card(duration(report.video_seconds), "of video in clips")
        yield _card(f"{report.video_hours_per_wall_hour:,.2f}", "hours of video an hour")
    if (frames := report.frames_per_second_per_core) is not None:
        yield _card(f"{frames:,.0f}", "frames/s decoded a core")
    if report.gpu_seconds:
        yield _card(duration(report.gpu_seconds), "of GPU in the model")
    yield _card(duration(report.tail_seconds), "tail, with workers idle")
    for stage, peak in report.peak_memory_bytes.items():
        yield _card(size(peak), f"peak memory, {stage}")
    yield _card(size(report.output_bytes), f"in {counted(report.output_files, 'file')}")


def _card(value: str, label: str, *, alert: bool = False) -> str:
    kind = ' class="alert"' if alert else ""
    return f"<div{kind}><b>{escape(value)}</b><span>{escape(label)}</span></div>"


def _split(report: Report) -> str:
    """Where the workers' time went, as one bar."""
    bar, key = [], []
    for part, share in report.split.items():
        name, colour = PARTS[part]
        seconds = duration(getattr(report, f"{part}_seconds"))
        bar.append(f'<div style="width:{share:.2%};background:{colour}"></div>')
        key.append(f'<span><i style="background:{colour}"></i>{name} {share:.0%} ({seconds})</span>')
    return f'<div class="split">{"".join(bar)}</div><div class="key">{"".join(key)}</div>'


def _failures(failures: pa.Table, output: str) -> str:
    groups = "".join(map(_group, grouped(failures, EXAMPLES)))
    return f'{groups}<div class="key">all of them: tubelet failures {escape(output)}</div>'


def _group(group: FailureGroup) -> str:
    where = f"{group.stage}, {counted(len(group.inputs), 'input')}, {len(group.empty):,} of them gave nothing"
    examples = "".join(f"<li>{_example(row)}</li>" for row in group.examples)
    more = "" if len(group.inputs) <= len(group.examples) else '<li class="soft">...</li>'
    return (
        f'<div class="stage">{escape(group.reason)} <span class="soft">{escape(where)}</span></div>'
        f"<ul>{examples}{more}</ul>"
    )


def _example(row: dict[str, Any]) -> str:
    at = "" if row["position_seconds"] is None else f" at {row['position_seconds']:.2f} s"
    return f"<code>{escape(row['uri'])}</code>{at}: {escape(row['message'])}"


def _sample(one: Thumbnail) -> str:
    data = base64.b64encode(one.jpeg).decode()
    labels = f" {escape(', '.join(one.labels))}" if one.labels else ""
    return (
        f'<figure title="{escape(one.uri)}"><img alt="" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{escape(one.uri.rpartition('/')[2])} "
        f"<small>{one.start_seconds:.1f} s{labels}</small></figcaption></figure>"
    )
