"""What each process of torchrun does in test_loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jobs.loop import Row, train
from jobs.spec import TrainSpec, load


def main(spec_path: str, run: str) -> None:
    spec = load(json.loads(Path(spec_path).read_text()))
    assert isinstance(spec, TrainSpec)
    rows: list[Row] = []

    def log(row: Row) -> None:
        rows.append(row)
        Path(run, "begun").touch()

    train(spec, Path(run), log)
    if rows:
        Path(run, "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
