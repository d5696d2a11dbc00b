"""How far off an estimate was: it is kept in the run's folder, and compared with what the run came to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.commits import Run
from pipeline.errors import SpecError, StorageError
from pipeline.storage import locate, write_atomic

if TYPE_CHECKING:
    from jobs.outlook import Outlook
    from jobs.report import Report

KEPT = "estimate.json"
FORMAT = 1
# What is compared, and how it is called; of the whole folder but for the last one.
COMPARED = {
    "clips": "clips",
    "output_bytes": "output",
    "decode_cpu_seconds": "decoding",
    "model_seconds": "the model",
    "wall_seconds": "wall time",
}

Comparison = dict[str, dict[str, float]]  # {what: {"estimated": ..., "actual": ..., "ratio": ...}}


def keep(outlook: Outlook) -> list[str]:
    """Put what was measured into the folder of the run, in place of what was there; gives what to say."""
    if not outlook.measured:
        return []
    values = outlook.values()
    kept = {name: values[name] for name in COMPARED}
    kept |= {"format": FORMAT, "fingerprint": outlook.fingerprint, "workers": outlook.workers}
    try:
        place = locate(outlook.output, "output.path") / KEPT
        write_atomic(place, json.dumps(kept, indent=1).encode())
    except (OSError, StorageError, SpecError):
        return [f"not kept for the run's report: {outlook.output} cannot be written to"]
    return [f"kept in {outlook.output}/{KEPT}; the run's report will tell how far off this is"]


def read(run: Run) -> dict[str, Any] | None:
    """The estimate in a run's folder, if it is of this very job."""
    place = run.place / KEPT
    if not place.exists():
        return None
    try:
        kept = json.loads(place.read_bytes())
    except ValueError:
        return None
    mine = isinstance(kept, dict) and kept.get("format") == FORMAT
    return kept if mine and kept.get("fingerprint") == run.fingerprint else None


def compare(kept: Mapping[str, Any], report: Report, workers: Mapping[str, int]) -> Comparison:
    """What was estimated beside what came true.

    The wall time only of a call that did all of the job, and with as many workers as were thought of.

    Args:
        workers: {stage: how many} the call of the report had.
    """
    at_once = report.new_units == report.units and kept.get("workers") == workers
    found: Comparison = {}
    for name in COMPARED:
        estimated, actual = kept.get(name), getattr(report, name)
        if estimated and (at_once or name != "wall_seconds"):
            found[name] = {"estimated": estimated, "actual": actual, "ratio": actual / estimated}
    return found
