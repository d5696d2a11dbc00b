"""From a spec to a cluster: cluster.yaml is what `ray up` takes, and `submit` runs a job on a real head."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from jobs import embed
from jobs.cluster import Room, connected, submit
from jobs.spec import EmbedSpec, load
from pipeline.commits import Run
from pipeline.errors import SpecError
from pipeline.limits import Limits
from pipeline.sampling import Sampling
from pipeline.stages import Cutting
from pipeline.verify import verify

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("room", [Room(1, 1, 0), Room(1, 2, 0), Room(1, 15, 0), Room(2, 1, 0), Room(3, 11, 0),
                                  Room(1, 1, 1), Room(1, 2, 2), Room(4, 63, 8)])  # fmt: skip
@pytest.mark.parametrize("changes", [(), ("sampling=null", "input={shards: x}")])
def test_default_workers_fit_every_room(room: Room, changes: tuple[str, ...]) -> None:
    spec = load(ROOT / "jobs" / "specs" / "quickstart.yaml", changes)
    assert isinstance(spec, EmbedSpec)
    sampling = Sampling()
    plan = spec.model.plans(sampling)["video"]
    cutting = Cutting("/", sampling, {"video": plan}, (), 3, 16, Limits(), None)
    pools = embed.pools(spec, Run("/x", "f"), embed.Encoder(spec.model, sampling), cutting, "s", room)
    assert sum(pool.actors * pool.cpus for pool in pools) <= room.cpus
    assert sum(pool.actors * pool.gpus for pool in pools) <= room.gpus
    assert all(pool.actors >= 1 for pool in pools)


def test_an_address_where_nothing_answers_is_told_at_once() -> None:
    begun = time.monotonic()
    with (
        pytest.raises(SpecError, match=r"ray.address = .*no cluster answers there"),
        connected(f"127.0.0.1:{free_port()}"),
    ):
        pass
    assert time.monotonic() - begun < 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head of our own on loopback: own ports, own folder, own process group."""
    port = free_port()
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
        f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=3", "--node-ip-address=127.0.0.1",
        f"--temp-dir={os.environ['RAY_TMPDIR']}/head",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # jobs start the head's `python`
    environment = {**os.environ, "PATH": path, "RAY_AUTH_MODE": "disabled"}
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("wb") as output, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        head = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=output, stderr=output
        )
        try:
            deadline = time.monotonic() + 90
            while True:
                assert head.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.3)
            yield f"http://127.0.0.1:{port}"
        finally:
            mine = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
            for process in mine:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            head.wait()


def test_a_submitted_job_runs_to_its_end(job_server: str, clips: Path, tmp_path: Path) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    (tmp_path / "list.txt").write_text("vp9.webm\nh264_bframes.mp4\nnot there.mp4\n")
    spec = load(
        {
            "version": 1, "kind": "shard", "models": [{"name": "tubevit-tiny"}],
            "input": {"path": str(tmp_path / "list.txt"), "root": str(clips)},
            "sampling": {"frames": 20, "height_px": 64, "width_px": 96, "stride": 1},
            "output": {"path": str(tmp_path / "out")},
        }
    )  # fmt: skip
    name = submit(spec, job_server, "first-job")
    assert name == "first-job"
    client = JobSubmissionClient(job_server)
    deadline = time.monotonic() + 150
    while (status := client.get_job_status(name)) not in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        assert time.monotonic() < deadline, client.get_job_logs(name)
        time.sleep(0.5)
    assert status == JobStatus.SUCCEEDED, client.get_job_logs(name)
    assert "clips/s" in client.get_job_logs(name)
    assert verify(str(tmp_path / "out")).problems == []
    (failure,) = pq.read_table(tmp_path / "out" / "failures").to_pylist()
    assert (failure["uri"], failure["reason"]) == ("not there.mp4", "unreadable")
    with pytest.raises(SpecError, match="the job was not taken"):
        submit(spec, job_server, "first-job")


def test_no_job_server(tmp_path: Path) -> None:
    spec = load(ROOT / "jobs" / "specs" / "quickstart.yaml")
    with pytest.raises(SpecError, match="output.path = 'runs/quickstart': a relative path means nothing"):
        submit(spec, "http://127.0.0.1:1")
    spec = load(ROOT / "jobs" / "specs" / "quickstart.yaml", (f"output.path={tmp_path}",))
    with pytest.raises(SpecError, match="--address = .*the job was not taken"):
        submit(spec, f"http://127.0.0.1:{free_port()}")


def test_a_ray_that_does_not_start_ends_the_process_though_it_holds_pythons_lock() -> None:
    code = """
import ctypes, jobs.cluster, ray
jobs.cluster.START_SECONDS = 1.0
ray.init = lambda *_, **__: ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the lock, as Ray does there
with jobs.cluster.connected(None):
    pass
"""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - begun < 50
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout (0:00:01)!")
    assert "in connected" in done.stderr
