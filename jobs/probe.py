"""`kind: probe`: what embeddings are worth, to report.json. One process, no Ray; no video is opened.

Takes 4 bytes a channel and video, up to 1 KB a view for what is known of it, and about half a GB to work in.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.embed import Encoder
from jobs.exam import LINEAR, Examiner, doubts, opened
from jobs.progress import Progress
from jobs.questions import ProbeSpec
from jobs.spec import dump
from jobs.texts import tower
from jobs.train import begun
from pipeline.lock import only_writer
from pipeline.sampling import Sampling
from pipeline.storage import locate, write_atomic

REPORT = "report.json"


def run_probe(spec: ProbeSpec, progress: Progress) -> dict[str, Any]:
    """What embeddings are worth, by a linear probe, neighbours and texts; also in RUN/report.json and .html.

    Asked again of the same embeddings, the answer is the one that is there.

    Raises:
        SpecError: the spec does not fit the embeddings, or the folder is another job's; nothing was computed.
    """
    spec = spec.absolute()
    run = Path(spec.output.path)
    with only_writer(spec.output.path):
        again = begun(run, spec)
        exam = opened(spec)
        if again and (run / REPORT).exists():
            there: dict[str, Any] = json.loads((run / REPORT).read_text())
            if there["digest"] == exam.embedded.digest:
                return there
        encoder = None if spec.text is None else tower(spec.text, exam.embedded)
        write_atomic(locate(str(run / "spec.yaml")), dump(spec).encode())
        made = exam.embedded.made
        notes = [*Encoder(made.model, made.sampling or Sampling()).warnings(), *doubts(exam)]
        for note in notes:
            progress.note(note, style="bold yellow")
        progress.status(f"reading {len(exam.embedded.video_of_row):,} embeddings ...")
        found = Examiner(spec, exam, encoder, progress).report()
        found["notes"] = notes
        write_atomic(locate(str(run / REPORT)), json.dumps(found, indent=1).encode())
        page = Console(record=True, width=110, file=io.StringIO())
        for shown in [*notes, *tables(found)]:
            page.print(shown, markup=False)
        write_atomic(locate(str(run / "report.html")), page.export_html().encode())
    return found


def tables(found: dict[str, Any]) -> list[Table]:
    """What a report says, for people: all scores, recall, each fold where there are several, each class."""
    judges = found["judges"]
    made = [_scores(found), *([_recall(found["recall"])] if found.get("recall") else [])]
    if len(found["folds"]) > 1:
        made.append(_folds(found["folds"], list(judges)))
    rows = judges[LINEAR]["classes"]
    classes = Table(title=f"classes, by the {LINEAR}", title_justify="left")
    for key in rows[0]:
        side: Literal["left", "right"] = "left" if key in ("class", "taken for") else "right"
        classes.add_column(key.replace("_", " "), justify=side)
    for row in rows:
        classes.add_row(*map(_cell, row.values()))
    return [*made, classes]


def _scores(found: dict[str, Any]) -> Table:
    judges, several = found["judges"], len(found["folds"]) > 1
    classes = len(judges[LINEAR]["classes"])
    title = f"probe: {found['model']}, {found['tested']:,} videos of {classes:,} classes"
    title += f", in {len(found['folds']):,} groups" if several else ""
    table = Table(title=title, title_justify="left")
    columns = {
        "top1": "top-1", "top5": "top-5", "mean_class_accuracy": "class mean",
        "calibration_error": "calibration", "mean_average_precision": "mAP",
    }  # fmt: skip
    shown = [key for key in columns if any(key in scores for scores in judges.values())]
    table.add_column("by", no_wrap=True)
    for key in shown:
        table.add_column(columns[key], justify="right", no_wrap=True)
    if several:
        table.add_column("over groups", justify="right", no_wrap=True)
    for name, scores in judges.items():
        cells = [_cell(scores.get(key)) for key in shown]
        if several:
            each = np.array([fold[name] for fold in found["folds"]])
            cells.append(Text(f"{each.mean():.3f} ± {each.std(ddof=1):.3f}"))
        table.add_row(name, *cells)
    if "largest_class" in found:
        table.add_row("largest class", _cell(found["largest_class"]), end_section=True)
    return table


def _recall(recall: dict[str, dict[str, float]]) -> Table:
    table = Table(title="recall: a match among the first k", title_justify="left")
    table.add_column("from, to", no_wrap=True)
    for k in next(iter(recall.values())):
        table.add_column(f"@{k}", justify="right")
    for name, shares in recall.items():
        table.add_row(name, *map(_cell, shares.values()))
    return table


def _folds(folds: Sequence[dict[str, Any]], judges: Sequence[str]) -> Table:
    table = Table(title="groups, each left out in turn", title_justify="left")
    table.add_column("group")
    for name in ("videos", *judges):
        table.add_column(name, justify="right")
    for fold in folds:
        table.add_row(_cell(fold["fold"]), f"{fold['test']:,}", *(_cell(fold[name]) for name in judges))
    return table


def _cell(value: float | int | str | None) -> Text:
    """A name may well hold what looks like markup."""
    return Text(f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value))
