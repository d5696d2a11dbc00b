"""Jobs on a real head, with its own token: submitted, followed, stopped, submitted again."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import tiny_shards
from samples import free_port, tubelet

import jobs
from jobs import checkpoints, metrics
from jobs.server import ADDRESS
from jobs.spec import JobSpec, load
from jobs.submission import EXIT_CODES, Submitted
from pipeline.errors import SpecError
from pipeline.verify import verify

QUICKSTART = Path(__file__).parent.parent / "jobs" / "specs" / "quickstart.yaml"
SMALL = (
    "sampling={frames: 20, stride: 1, clips: 12, height_px: 64, width_px: 96}",
    "model={name: tubevit-tiny}",
)


def quickstart(*changes: str) -> JobSpec:
    return load(QUICKSTART, ("output.path=s3://bucket/runs/first", *changes))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The job server of a head of our own on loopback: own ports, folder, process group, and token."""
    port, token = free_port(), os.urandom(16).hex()
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
        f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=3", "--node-ip-address=127.0.0.1",
        f"--temp-dir={os.environ['RAY_TMPDIR']}/head",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # jobs start the head's `python3`
    ours = {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("wb") as output, pytest.MonkeyPatch.context() as patch:
        process = subprocess.Popen(
            command, env={**os.environ, **ours}, start_new_session=True, stdout=output, stderr=output
        )
        patch.setenv("RAY_AUTH_TOKEN", token)
        patch.delenv("RAY_AUTH_MODE", raising=False)
        patch.setenv(ADDRESS, f"http://127.0.0.1:{port}")
        try:
            deadline = time.monotonic() + 120
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.3)
            yield os.environ[ADDRESS]
            assert process.poll() is None, log.read_text()
        finally:
            mine = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for one in mine:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()


def until(done: Any, job: Submitted, seconds: float = 600) -> None:
    """Wait for something that a job is to do while it runs."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, job.logs()
        assert job.status() in ("PENDING", "RUNNING"), job.logs()
        time.sleep(0.2)


def test_a_head_wants_its_own_token(
    head: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd
) -> None:
    token = os.environ["RAY_AUTH_TOKEN"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("f" * 32)
    assert tubelet(monkeypatch, "list", "--address", head) == 2
    said = capfd.readouterr().err
    assert "the job server wants another token than it was given; set RAY_AUTH_TOKEN, or" in said
    (tmp_path / ".ray" / "auth_token").unlink()
    assert tubelet(monkeypatch, "list") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "the job server wants a token; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH (a file)" in line
    (tmp_path / "token").write_text(f"{token}\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert tubelet(monkeypatch, "list", "--json") == 0
    assert isinstance(json.loads(capfd.readouterr().out), list)


@pytest.mark.slow
def test_submit_stop_submit_again(head: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd) -> None:
    """The quickstart, for ever, until it is stopped; then to its end. No row is lost, and none is doubled."""
    out = tmp_path / "out"
    changes = (*SMALL, "output.unit_bytes=250000", f"output.path={out}")
    job = jobs.submit(load(QUICKSTART, changes), watch_seconds=1)

    def commits() -> list[Path]:
        return list(out.glob("commits/*.json"))

    until(commits, job)
    with pytest.raises(SpecError, match=f"ID = '{job.submission_id}': is on its way already"):
        jobs.submit(load(QUICKSTART, changes))
    assert job.stop() == "STOPPED"
    assert "interrupted; what is committed stays" in job.logs()
    assert tubelet(monkeypatch, "status", job.submission_id) == 3
    before = {path: path.read_bytes() for path in commits()}

    options = [text for change in changes for text in ("--set", change)]
    capfd.readouterr()
    assert tubelet(monkeypatch, "submit", QUICKSTART, *options, "--follow") == 0
    name, _, log = capfd.readouterr().out.partition("\n")
    assert name == f"{job.submission_id}-2"
    assert "clips/s" in log
    assert Submitted(job.client, name).logs() == log
    assert {path: path.read_bytes() for path in before} == before
    assert verify(str(out)).problems == []
    ids = pq.read_table(out / "embeddings", columns=["clip_id"])["clip_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 48
    assert tubelet(monkeypatch, "list", "--json") == 0
    rows = [row for row in json.loads(capfd.readouterr().out) if row["output"] == str(out)]
    assert [(row["id"], row["status"]) for row in rows] == [
        (job.submission_id, "STOPPED"),
        (name, "SUCCEEDED"),
    ]


@pytest.mark.slow
def test_training_that_is_stopped_saves_a_checkpoint_and_goes_on_from_it(head: str, tmp_path: Path) -> None:
    tiny_shards.write(tmp_path / "clips", 40)
    recipe = {"steps": 600, "batch": 8, "optimizer": {"learning_rate": 1e-3}}
    spec = tiny_shards.spec(tmp_path, recipe=recipe, checkpoints={"every_steps": 10_000})
    run = tmp_path / "run"
    job = jobs.submit(spec)
    until(lambda: list(metrics.read(run)), job)
    assert job.stop() == "STOPPED"
    assert "saving a checkpoint ..." in job.logs()
    (step,) = checkpoints.steps(run)
    assert 20 <= step < 600
    again = jobs.submit(spec)
    assert again.wait(900) == "SUCCEEDED", again.logs()
    assert "step 20/600" not in again.logs()
    assert [row["step"] for row in metrics.read(run)] == list(range(20, 601, 20))


@pytest.mark.slow
def test_what_a_job_reports_of_itself_when_it_fails(head: str, tmp_path: Path) -> None:
    job = jobs.submit(load(QUICKSTART, (f"output.path={tmp_path}/out", "input.path=/no/where")))
    assert job.wait(300) == "FAILED"
    assert "input.path = '/no/where': no such file or folder" in job.logs()
    assert EXIT_CODES[job.status()] == 1
