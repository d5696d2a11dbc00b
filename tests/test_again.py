"""A run's folder goes on: inputs that arrive, change, or failed; and the streaming case."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from samples import SMALL, embed_spec, rows

import jobs
from pipeline.errors import SpecError
from pipeline.verify import failures, verify

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(clips: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("vp9.webm", "h264.ts", "h264_bframes.mp4"):
        shutil.copy(clips / name, folder)
    (folder / "bad.mp4").write_bytes(b"")
    return folder


def uris(found: dict[str, np.ndarray]) -> list[str]:
    return sorted({name.partition("#")[0] for name in found})


@pytest.mark.slow
def test_new_and_changed_inputs_are_taken_up(
    folder: Path, clips: Path, local_ray: None, tmp_path: Path
) -> None:
    """One that failed and is whole now, one that has other content now, and one that is new."""
    output = tmp_path / "out"
    jobs.run(embed_spec(folder, output))
    before = rows(output)
    assert jobs.run(embed_spec(folder, output), extend=True).new_clips == 0
    shutil.copy(clips / "h264_bframes.mp4", folder / "bad.mp4")
    shutil.copy(clips / "h264_bframes.mp4", folder / "vp9.webm")
    shutil.copy(clips / "vp9.webm", folder / "new.webm")
    assert jobs.run(embed_spec(folder, output)).new_clips == 0  # a plan is frozen until it is extended
    report = jobs.run(embed_spec(folder, output), extend=True)
    assert (report.inputs, report.clips, report.failures) == (5, 10, 0)
    after = rows(output)
    assert uris(after) == ["bad.mp4", "h264.ts", "h264_bframes.mp4", "new.webm", "vp9.webm"]
    for name, vector in after.items():
        if name.startswith(("vp9.webm", "bad.mp4")):  # the content of the other one, at its times
            twin = f"h264_bframes.mp4#{name.partition('#')[2]}"
            np.testing.assert_array_equal(vector, before[twin])
        elif not name.startswith("new"):
            np.testing.assert_array_equal(vector, before[name])
    assert verify(str(output)).problems == []
    # The same as of a folder that was so from the beginning.
    jobs.run(embed_spec(folder, tmp_path / "fresh"))
    fresh = rows(tmp_path / "fresh")
    assert fresh.keys() == after.keys()
    for name, vector in fresh.items():
        np.testing.assert_allclose(vector, after[name], atol=1e-5)


def test_a_table_may_grow_but_keeps_its_columns(folder: Path, local_ray: None, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("uri,speaker\nvp9.webm,7\n")
    spec = embed_spec(table, tmp_path / "out", input={"path": str(table), "root": str(folder)})
    jobs.run(spec)
    table.write_text("uri,speaker\nvp9.webm,7\nh264.ts,8\nh264.ts,9\n")
    with pytest.raises(SpecError, match="lists h264.ts more than once"):
        jobs.run(spec, extend=True)
    table.write_text("uri,speaker,age\nvp9.webm,7,1\nh264.ts,8,2\n")
    with pytest.raises(SpecError, match=r"has other columns than it had \(age\)"):
        jobs.run(spec, extend=True)
    table.write_text("uri,speaker\nh264.ts,somebody\n")
    with pytest.raises(SpecError, match="a column has another type than it had"):
        jobs.run(spec, extend=True)
    shutil.copy(folder / "h264_bframes.mp4", folder / "h264.ts")
    table.write_text("uri,speaker\nh264.ts,8\n")  # what is not listed any more keeps its rows
    assert jobs.run(spec, extend=True).clips == 4
    found = pq.read_table(tmp_path / "out" / "embeddings").to_pylist()
    assert {(row["uri"], row["speaker"]) for row in found} == {("vp9.webm", 7), ("h264.ts", 8)}
    assert verify(str(tmp_path / "out")).problems == []


def test_a_content_is_known_again_whenever_it_was_written(
    folder: Path, clips: Path, local_ray: None, tmp_path: Path
) -> None:
    spec = embed_spec(folder, tmp_path / "out", input={"path": str(folder), "identity": "content"})
    jobs.run(spec)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert jobs.run(spec, extend=True).new_clips == 0
    changed = folder / "h264.ts"
    before = changed.stat()
    other = (clips / "h264_bframes.mp4").read_bytes()
    changed.write_bytes(other + bytes(before.st_size - len(other)))
    os.utime(changed, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert jobs.run(spec, extend=True).new_clips == 2
    found = pq.read_table(tmp_path / "out" / "embeddings").to_pylist()
    digest = hashlib.sha256(changed.read_bytes()).hexdigest()
    assert {r["source_version"] for r in found if r["uri"] == changed.name} == {f"sha256-{digest}"}
    assert verify(str(tmp_path / "out")).problems == []


@pytest.mark.parametrize("kind", ["embed", "shard"])
@pytest.mark.slow
def test_what_failed_is_done_again(
    kind: str, folder: Path, clips: Path, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input that gave nothing alone; one that gave a part of its clips together with its unit."""
    monkeypatch.setattr("pipeline.units.UNITS_AT_LEAST", 1)
    whole = (clips / "h264_bframes.mp4").read_bytes()
    damaged = bytearray(whole)
    damaged[2000:2400] = bytes(400)
    (folder / "h264_bframes.mp4").write_bytes(damaged)
    spec = embed_spec(folder, tmp_path / "out")
    spec["sampling"] = {**SMALL, "frames": 20, "clips": None, "every_seconds": 0.4}
    spec["output"]["unit_bytes"] = 1 << 30
    if kind == "shard":
        spec |= {"kind": "shard", "models": [{"name": spec.pop("model")["name"]}]}
    first = jobs.run(spec)
    assert first.units == 1
    lost = failures(str(tmp_path / "out"))
    assert set(lost["uri"].to_pylist()) == {"bad.mp4", "h264_bframes.mp4"}
    kept = {row["uri"]: row["rows"] for row in lost.to_pylist()}
    assert kept["bad.mp4"] == 0
    assert kept["h264_bframes.mp4"] > 0
    assert all(row["worker"] and row["item"] is not None for row in lost.to_pylist())
    again = jobs.run(spec, retry_failed=True)  # nothing has become better
    assert (again.clips, again.failures) == (first.clips, first.failures)
    assert failures(str(tmp_path / "out")).num_rows == lost.num_rows
    for name in ("bad.mp4", "h264_bframes.mp4"):
        (folder / name).write_bytes(whole)
    last = jobs.run(spec, retry_failed=True)
    assert (last.inputs, last.failures, last.failed_inputs) == (4, 0, 0)
    assert failures(str(tmp_path / "out")).num_rows == 0
    verdict = verify(str(tmp_path / "out"))
    assert verdict.problems == []
    spec["output"] = {"path": str(tmp_path / "fresh"), "unit_bytes": 1 << 30}
    assert jobs.run(spec).clips == last.clips == verdict.rows
    assert jobs.run({**spec, "output": {"path": str(tmp_path / "out"), "unit_bytes": 1 << 30}}).new_clips == 0


def test_a_job_that_gave_up_can_be_retried(
    folder: Path, clips: Path, local_ray: None, tmp_path: Path
) -> None:
    spec = embed_spec(folder, tmp_path / "out", failure={"max_failed_fraction": 0.0})
    with pytest.raises(RuntimeError, match="1 of 4 inputs failed, more than .*; see: tubelet failures"):
        jobs.run(spec)
    assert failures(str(tmp_path / "out"))["uri"].to_pylist() == ["bad.mp4"]
    shutil.copy(clips / "vp9.webm", folder / "bad.mp4")
    assert jobs.run(spec, retry_failed=True).clips == 8
    assert verify(str(tmp_path / "out")).problems == []


@pytest.mark.slow
def test_an_input_that_changes_under_a_run_is_told(
    folder: Path, clips: Path, local_ray: None, tmp_path: Path
) -> None:
    """What was listed is not what is decoded: better no rows than rows of something else."""
    spec = embed_spec(folder, tmp_path / "out", failure={"max_failed_fraction": 0.0})
    with pytest.raises(RuntimeError, match="1 of 4 inputs failed"):
        jobs.run(spec)
    for path in (tmp_path / "out" / "commits").iterdir():
        path.unlink()
    shutil.copy(clips / "h264_bframes.mp4", folder / "vp9.webm")
    spec["failure"]["max_failed_fraction"] = 1.0
    assert jobs.run(spec).failures_by_reason == {"unreadable": 1, "changed": 1}
    message = failures(str(tmp_path / "out")).to_pylist()[1]["message"]
    assert "when it was listed" in message
    assert "--extend" in message
    assert jobs.run(spec, extend=True).failures_by_reason == {"unreadable": 1}
    assert uris(rows(tmp_path / "out")) == ["h264.ts", "h264_bframes.mp4", "vp9.webm"]


@pytest.mark.slow
def test_a_watched_folder_is_embedded_as_it_fills(clips: Path, tmp_path: Path) -> None:
    """From an empty folder on, until SIGTERM; the run after it finds all in order."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (tmp_path / "spec.json").write_text(json.dumps(embed_spec(folder, output)))
    command = [sys.executable, "-m", "jobs", "run", str(tmp_path / "spec.json")]
    how: dict[str, Any] = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    watcher = subprocess.Popen(
        [*command, "--watch", "1"], **how, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        assert watcher.stderr is not None
        while "nothing there yet; watching" not in (line := watcher.stderr.readline()):
            assert line
        for number, name in enumerate(("vp9.webm", "h264.ts")):
            shutil.copy(clips / name, folder / f".{name}")
            (folder / f".{name}").rename(folder / name)
            deadline = time.monotonic() + 180
            while not (output / "manifest.json").exists() or len(rows(output)) < 2 * (number + 1):
                assert watcher.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
        begun = time.monotonic()
        watcher.send_signal(signal.SIGTERM)
        said = watcher.communicate(timeout=60)[1]
        assert watcher.returncode == 128 + signal.SIGTERM
        assert time.monotonic() - begun < 30
    finally:
        if watcher.poll() is None:
            os.killpg(watcher.pid, signal.SIGKILL)
            watcher.wait()
    assert "1 new inputs, 0 have changed" in said
    assert "Traceback" not in said
    assert len(list((output / "plan").glob("*.json"))) == 2
    subprocess.run(command, **how, check=True, timeout=120)
    assert verify(str(output)).problems == []
    assert uris(rows(output)) == ["h264.ts", "vp9.webm"]
