"""What goes wrong from outside: decoders that die or hang, interrupts, and a second run on one folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from samples import embed_spec, rows

import jobs
from pipeline.errors import SpecError
from pipeline.lock import LockLostError, only_writer
from pipeline.probing import isolated
from pipeline.verify import verify

ROOT = Path(__file__).parent.parent

DEADLY = """
import json, os, signal, sys, time
import jobs.embed
import pipeline.stages as stages

read = stages.read_clips


def deadly(place, *rest):
    if place.path.endswith("murder.webm"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if place.path.endswith("sleep.webm"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        time.sleep(600)
    return read(place, *rest)


class Decode(stages.Decode):
    def __call__(self, units):
        import pipeline.stages
        pipeline.stages.read_clips = deadly
        return super().__call__(units)


jobs.embed.Decode = Decode
jobs.run(json.loads(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("name", "reason", "attempts"), [("murder.webm", "crashed", 2), ("sleep.webm", "timeout", 1)]
)
@pytest.mark.slow
def test_an_input_that_kills_or_hangs_its_decoder_is_left_out_and_its_neighbours_are_not(
    clips: Path, local_ray: None, tmp_path: Path, name: str, reason: str, attempts: int
) -> None:
    """The decoder is made to die, as by a segmentation fault, or to hang where no signal reaches it."""
    for good in ("vp9.webm", "h264.ts", "h264_bframes.mp4"):
        shutil.copy(clips / good, tmp_path)
    shutil.copy(clips / "vp9.webm", tmp_path / name)
    script = tmp_path / "job.py"
    script.write_text(DEADLY)
    spec = embed_spec(tmp_path, tmp_path / "out", failure={"attempts": attempts})
    spec["limits"] = {"timeout_seconds": 3.0} if reason == "timeout" else {}
    spec["input"] = {"path": str(tmp_path)}
    spec["output"]["unit_bytes"] = 1 << 30
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(script), json.dumps(spec)], check=True, env=environment, timeout=240)
    (failure,) = pq.read_table(tmp_path / "out" / "failures").to_pylist()
    assert (failure["uri"], failure["reason"], failure["attempts"]) == (name, reason, attempts)
    assert len(rows(tmp_path / "out")) == 6
    assert verify(str(tmp_path / "out")).problems == []


def test_what_kills_or_hangs_a_probe_is_told_from_its_neighbours(local_ray: None) -> None:
    def touchy(number: int) -> int:
        if number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 4:
            time.sleep(600)
        return number * 10

    assert isolated(touchy, [0, 1, 2, 3, 4, 5], 1.5) == [0, 10, None, 30, None, 50]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(corpus: Path, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(embed_spec(corpus, tmp_path / "out")))
    command = [sys.executable, "-m", "jobs", "run", str(tmp_path / "spec.json")]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "starting Ray" not in said:
        said = process.stderr.readline()
        assert said
    time.sleep(4)
    process.send_signal(number)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "the same command goes on from there" in " ".join(output.split())
    assert "Traceback" not in output


def test_a_second_writer_is_refused(corpus: Path, tmp_path: Path) -> None:
    with only_writer(str(tmp_path / "out")), pytest.raises(SpecError, match="another run is writing to it"):
        jobs.run(embed_spec(corpus, tmp_path / "out"))


@pytest.mark.parametrize("moment", ["a unit is done", "all is ready to be published"])
def test_a_run_that_loses_its_folder_stops_and_publishes_nothing(
    clips: Path, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    spec = embed_spec(tmp_path, tmp_path / "out")
    spec["input"] = {"path": str(clips / "vp9.webm")}  # one unit
    asked = 0

    @contextmanager
    def taken_over(*_: object) -> Iterator[Callable[[], None]]:
        def check() -> None:
            nonlocal asked
            asked += 1
            if asked > (moment != "a unit is done"):
                raise LockLostError("taken over")

        yield check

    monkeypatch.setattr("jobs.runner.only_writer", taken_over)
    with pytest.raises(LockLostError, match="taken over"):
        jobs.run(spec)
    monkeypatch.undo()
    assert not (tmp_path / "out" / "manifest.json").exists()
    jobs.run(spec)
    assert verify(str(tmp_path / "out")).problems == []
