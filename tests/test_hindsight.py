"""How far off an estimate was: what is comparable is compared, and with the estimate of this job alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.hindsight import KEPT, compare, keep, read
from jobs.outlook import Outlook
from jobs.report import Report
from jobs.report_page import page
from jobs.timeline import Timeline
from pipeline.commits import Run
from pipeline.shards import FAILURES

VALUES = {
    "clips": 200, "output_bytes": 1e8, "decode_cpu_seconds": 50.0, "model_seconds": None,
    "wall_seconds": 92.0,
}  # fmt: skip
WORKERS = {"decode": 2, "embed": 1}


def outlook(folder: Path, **changes: Any) -> Outlook:
    found = {"output": str(folder), "measured": True, "fingerprint": "f00d", "workers": WORKERS, **changes}
    return cast(Outlook, SimpleNamespace(values=lambda: {**VALUES, "else": 1}, **found))


def report(new_units: int = 4) -> Report:
    return Report(
        "embed", "tubevit-tiny", "/out", 4, 3, "videos and images", 0, 198, 0, {}, 110_000_000, 1,
        decode_cpu_seconds=60.0, model_seconds=7.0, wall_seconds=99.36, new_units=new_units,
    )  # fmt: skip


def test_what_was_measured_is_kept_and_read_by_that_job_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert keep(outlook(folder, measured=False)) == []
    assert not folder.exists()
    (told,) = keep(outlook(folder))
    assert f"{folder}/{KEPT}" in told
    kept = read(Run(str(folder), "f00d"))
    assert kept is not None
    assert {name: kept[name] for name in VALUES} == VALUES
    assert read(Run(str(folder), "beef")) is None
    for text in ("{", "[]", json.dumps({**kept, "format": 0})):
        (folder / KEPT).write_text(text)
        assert read(Run(str(folder), "f00d")) is None
    assert read(Run(str(tmp_path), "f00d")) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    (told,) = keep(outlook(tmp_path / "locked" / "out"))
    assert "cannot be written to" in told


def test_the_ratio_is_what_came_true_to_what_was_estimated() -> None:
    found = compare({**VALUES, "workers": WORKERS}, report(), WORKERS)
    assert {name: one["ratio"] for name, one in found.items()} == pytest.approx(
        {"clips": 0.99, "output_bytes": 1.1, "decode_cpu_seconds": 1.2, "wall_seconds": 1.08}
    )
    assert found["wall_seconds"] == {"estimated": 92.0, "actual": 99.36, "ratio": pytest.approx(1.08)}


@pytest.mark.parametrize(("new_units", "workers"), [(3, WORKERS), (4, {"decode": 3, "embed": 1})])
def test_the_time_of_a_resumed_run_or_with_other_workers_is_not_compared(
    new_units: int, workers: dict[str, int]
) -> None:
    found = compare({**VALUES, "workers": WORKERS}, report(new_units), workers)
    assert found.keys() == {"clips", "output_bytes", "decode_cpu_seconds"}


def test_people_are_told_in_the_table_and_on_the_page() -> None:
    found = report()
    assert "estimated" not in page(found, Timeline.of([]), FAILURES.empty_table(), [], "a: 1")
    assert not list(found.hindsight())
    found.estimate = compare({**VALUES, "workers": WORKERS}, found, WORKERS)
    line = "wall time: estimated 92.0 s, took 99.4 s (1.08x)"
    assert line in list(found.hindsight())
    assert line in dict(found._rows())["estimate"]
    assert f"<li>{line}</li>" in page(found, Timeline.of([]), FAILURES.empty_table(), [], "a: 1")
