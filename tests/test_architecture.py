"""What holds the house together: nobody imports what is not theirs, and these are our packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import jobs
import models
import pipeline

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("package", [pipeline, models, jobs])
def test_packages_are_this_checkout(package) -> None:
    """An installed wheel, or a stranger's `models`, would be tested in their place."""
    assert Path(package.__file__).parent.parent == ROOT


@pytest.mark.parametrize(
    "imported",
    [
        "import pipeline.stages",  # what a decode worker imports
        "import models; models.plan('gated-b16')",
        "import jobs.spec",
        "import jobs.shard",
    ],
)
def test_torch_is_not_imported(imported: str) -> None:
    script = f"import sys; {imported}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_files_stay_short() -> None:
    for package in ("pipeline", "models", "jobs"):
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 320, path
