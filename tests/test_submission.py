"""Jobs on a cluster: what is sent, under which name, what is refused; and all of it on a real head."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.job_submission import JobStatus
from ray.runtime_env import RuntimeEnv
from samples import free_port, tubelet

from jobs import server, submission
from jobs.environment import requirements
from jobs.server import ADDRESS
from jobs.spec import JobSpec, load
from jobs.submission import EXIT_CODES, Submitted, submission_id, submit
from pipeline.errors import SpecError

QUICKSTART = Path(__file__).parent.parent / "jobs" / "specs" / "quickstart.yaml"
TRAIN = {
    "version": 1, "kind": "train", "data": {"a": {"shards": "/a"}}, "model": {"name": "tubevit-tiny"},
    "recipe": {"steps": 1, "batch": 1, "optimizer": {"learning_rate": 1.0}}, "output": {"path": "/out"},
}  # fmt: skip


class FakeServer:
    """A job server's client, with jobs that do nothing."""

    def __init__(self) -> None:
        self.status: dict[str, str] = {}
        self.log = "one\ntwo\n"
        self.outages = 0
        self.begins = "PENDING"
        self.refusals: list[Exception] = []
        self.stopped: list[str] = []
        self.sent: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    def get_address(self) -> str:
        return "http://head:8265"

    def list_jobs(self) -> list[Any]:
        return [self.get_job_info(name) for name in self.status] + [SimpleNamespace(submission_id=None)]

    def get_job_info(self, name: str) -> Any:
        if self.outages:
            self.outages -= 1
            raise ConnectionError("gone")
        if name not in self.status:
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")
        return SimpleNamespace(
            submission_id=name, status=JobStatus(self.status[name]), message="why",
            metadata={"kind": "embed", "output": "/out"}, start_time=1_700_000_000_000, end_time=None,
        )  # fmt: skip

    def get_job_logs(self, name: str) -> str:
        return self.log

    def stop_job(self, name: str) -> bool:
        self.stopped.append(name)
        self.status[name] = "STOPPED"
        return True

    def submit_job(self, **sent: Any) -> str:
        if self.refusals:
            raise self.refusals.pop()
        self.sent = sent
        RuntimeEnv(**sent["runtime_env"])  # checks what goes together
        folder = sent["runtime_env"].get("working_dir")
        found = [path for path in Path(folder).rglob("*") if path.is_file()] if folder else []
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
        self.status[sent["submission_id"]] = self.begins
        return str(sent["submission_id"])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """The server at whatever address; it is asked without a pause."""
    found = FakeServer()
    for module in (submission, server):
        monkeypatch.setattr(module, "connect", lambda address=None: found)
        monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    return found


def quickstart(*changes: str) -> JobSpec:
    return load(QUICKSTART, ("output.path=s3://bucket/runs/first", *changes))


def test_an_id_is_that_of_what_is_made_and_where() -> None:
    name = submission_id(quickstart())
    assert name.startswith("embed-first-")
    assert len(name) == len("embed-first-") + 8
    same = ("output.path=s3://bucket/runs/first/", "resources.decode.actors=3", "ray.wait_seconds=1",
            "ray.environment.env={A: b}", "ray.entrypoint.cpus=1")  # fmt: skip
    assert {submission_id(quickstart(change)) for change in same} == {name}
    other = ("output.path=s3://other/runs/first", "sampling.clips=3", "model.seed=1")
    assert len({name, *(submission_id(quickstart(change)) for change in other)}) == 4
    assert submission_id(load(TRAIN)).startswith("train-out-")


def test_a_job_is_sent_again_only_when_it_has_ended(fake: FakeServer) -> None:
    name = submission_id(quickstart())
    fake.status = {f"{name}x": "RUNNING", f"{name}-2-3": "RUNNING"}  # of others
    for expected, end in ((name, "FAILED"), (f"{name}-2", "STOPPED"), (f"{name}-3", "SUCCEEDED")):
        assert submit(quickstart()).submission_id == expected
        for running in ("PENDING", "RUNNING"):
            fake.status[expected] = running
            with pytest.raises(
                SpecError, match=f"ID = '{expected}': is on its way already; `tubelet logs ID"
            ):
                submit(quickstart())
        fake.status[expected] = end
    assert submit(quickstart()).submission_id == f"{name}-4"


def test_a_head_that_has_just_started_is_asked_again(fake: FakeServer) -> None:
    busy = "Request failed with status code 500: No available agent to submit job, please try again later.."
    fake.refusals = [RuntimeError(busy), ConnectionError("reset")]
    assert submit(quickstart()).submission_id == submission_id(quickstart())
    fake.status.clear()
    fake.refusals = [
        ValueError("never taken"),
        ValueError("Traceback\n  line 1\nValueError: no such thing\n."),
    ]
    with pytest.raises(SpecError, match="the job server refused [(]ValueError: no such thing[)]"):
        submit(quickstart())
    assert len(fake.refusals) == 1


def test_what_is_sent(fake: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("# ours\nsix==1.17.0  # small\n\n--prefer-binary\n")
    changes = ("ray.address=10.0.0.1:6379", f"ray.environment.pip={tmp_path}/pins.txt",
               "ray.environment.env={TOKEN: secret}",
               "ray.entrypoint={cpus: 0.5, memory_bytes: 1000}")  # fmt: skip
    submit(quickstart(*changes), retry_failed=True, watch_seconds=90)
    assert fake.sent["entrypoint"] == "python3 -m jobs run spec.yaml --retry-failed --watch 90"
    assert fake.sent["metadata"] == {"kind": "embed", "output": "s3://bucket/runs/first"}
    reserved = {name: fake.sent[f"entrypoint_{name}"] for name in ("num_cpus", "num_gpus", "memory")}
    assert reserved == {"num_cpus": 0.5, "num_gpus": None, "memory": 1000}
    environment = fake.sent["runtime_env"]
    assert environment["pip"] == ["six==1.17.0", "--prefer-binary"]
    assert environment["env_vars"] == {"TOKEN": "secret", "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    assert {"jobs/__main__.py", "jobs/specs/quickstart.yaml", "models/vivit.py", "pipeline/cut.py"} < set(
        fake.files
    )
    assert {name.partition("/")[0] for name in fake.files} == {"jobs", "models", "pipeline", "spec.yaml"}
    assert not [name for name in fake.files if "__pycache__" in name or "/." in name]
    assert b"secret" not in fake.files["spec.yaml"]
    sent = load(yaml.safe_load(fake.files["spec.yaml"]))
    assert sent.ray.address is None
    assert sent.ray.environment.pip == tuple(environment["pip"])
    assert sent.identity() == quickstart().identity()


def test_an_image_brings_its_own_code_and_gets_the_spec_with_the_command(
    fake: FakeServer, tmp_path: Path
) -> None:
    submit(quickstart("ray.environment={image: 'registry/tubelet:1', env: {A: b}}"), extend=True)
    assert fake.sent["runtime_env"]["image_uri"] == "registry/tubelet:1"
    assert not fake.files
    (tmp_path / "python3").write_text('#!/bin/sh\necho "# $*"; cat "$4"\n')
    (tmp_path / "python3").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", "-c", fake.sent["entrypoint"]]
    got = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=True).stdout
    assert got.startswith("# -m jobs run /dev/stdin --extend\n")
    assert load(yaml.safe_load(got)).identity() == quickstart().identity()


@pytest.mark.parametrize(
    "line", ["torch", "torch>=2", "torch==2.*", "torch; os_name=='posix'", "-r more.txt", "."]
)
def test_a_requirement_without_a_version(line: str) -> None:
    with pytest.raises(SpecError, match="ray.environment.pip = .*: names no version"):
        requirements(("six==1.17.0", "six @ https://host/six.whl", "six[a]==1 ; os_name=='posix'", line))


def test_what_cannot_be_met_is_refused_before_anything_is_sent(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(spec: JobSpec, **options: Any) -> str:
        with pytest.raises(SpecError) as caught:
            submit(spec, **options)
        assert not fake.sent
        return str(caught.value)

    rest = ": a relative path means nothing on a cluster; give a URI or a full path"
    assert refused(load(QUICKSTART)) == f"output.path = 'runs/quickstart'{rest}"
    lines = refused(quickstart("input.path=[/a, b]", "model.checkpoint=~/c")).splitlines()
    assert lines == [f"input.path = 'b'{rest}", f"model.checkpoint = '~/c'{rest}"]
    assert refused(load({**TRAIN, "data": {"a": {"shards": "a"}}})).startswith(
        "data.a.shards = 'a': a relative"
    )
    assert "takes none of these" in refused(load(TRAIN), extend=True)
    assert "cannot be read (No such file" in refused(quickstart(f"ray.environment.pip={tmp_path}/none"))
    sizes = {name: path.stat().st_size for name, path in submission.code().items()}
    monkeypatch.setattr(submission, "LIMIT_BYTES", sum(sizes.values()) - 1)
    largest = max(sizes, key=lambda name: sizes[name])
    assert f"move away what is no code: {largest} (" in refused(quickstart())
    monkeypatch.setattr(submission, "LIMIT_BYTES", sum(sizes.values()))
    assert submission.code()
    with pytest.raises(SpecError, match="ray.environment: pip and image exclude each other"):
        quickstart("ray.environment={pip: [six==1.17.0], image: x}")


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    with pytest.raises(SpecError, match=f"--address = None: name the cluster's job server.*set {ADDRESS}"):
        submit(quickstart())
    closed = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", "10.255.255.1:6379")  # which Ray itself would take
    with pytest.raises(SpecError, match=f"--address = 'http://{closed}': no job server answers there"):
        submit(quickstart(), closed)
    monkeypatch.setenv(ADDRESS, closed)
    with pytest.raises(SpecError, match=f"'http://{closed}': no job server answers there"):
        submit(quickstart())
    assert os.environ[ADDRESS] == closed


@pytest.mark.parametrize("status", EXIT_CODES)
def test_exit_codes(status: str, fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    fake.status["a"] = status
    code = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 3, "RUNNING": 4, "PENDING": 4}[status]
    assert tubelet(monkeypatch, "status", "a") == code
    assert capfd.readouterr() == (f"{status}\n", "why\n")
    assert tubelet(monkeypatch, "status", "b") == 2
    assert capfd.readouterr().err.startswith("ID = 'b': there is no such job")
    assert tubelet(monkeypatch, "logs", "b") == 2
    assert tubelet(monkeypatch, "logs", "a") == 0
    assert capfd.readouterr().out == fake.log
    if code != 4:
        assert tubelet(monkeypatch, "logs", "a", "-f") == code
        assert capfd.readouterr() == (fake.log, f"{status}\n")
    assert tubelet(monkeypatch, "stop", "a") == 0
    assert fake.stopped == (["a"] if code == 4 else [])


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_a_submission_that_is_waited_for(
    status: str, fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    fake.begins = status
    arguments = ("submit", QUICKSTART, "--output", "/out", "--address", "http://head:8265")
    for option, printed in (("--wait", ""), ("--follow", fake.log)):
        assert tubelet(monkeypatch, *arguments, option) == EXIT_CODES[status]
        assert capfd.readouterr() == (f"{fake.sent['submission_id']}\n{printed}", f"{status}\n")
    assert tubelet(monkeypatch, *arguments) == 0
    assert capfd.readouterr() == (f"{fake.sent['submission_id']}\n", "")


def test_a_log_is_followed_to_its_last_words_over_an_outage(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.status["a"] = "RUNNING"
    pieces = Submitted(fake, "a").follow()  # type: ignore[arg-type]
    assert next(pieces) == "one\ntwo\n"
    fake.outages, fake.log = 2, fake.log + "three\n"
    assert next(pieces) == "three\n"
    fake.status["a"], fake.log = "FAILED", fake.log + "four\n"
    assert list(pieces) == ["four\n"]
    monkeypatch.setattr(server, "OUTAGE_SECONDS", 0.0)
    fake.outages = 1000
    with pytest.raises(SpecError, match="no job server answers there [(]gone[)]"):
        Submitted(fake, "a").wait()  # type: ignore[arg-type]


def test_a_wait_may_be_cut_short_and_interrupted(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    fake.status["a"] = "RUNNING"
    assert Submitted(fake, "a").wait(0.01) == "RUNNING"  # type: ignore[arg-type]

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "get_job_logs", interrupted)
    assert tubelet(monkeypatch, "logs", "a", "-f") == 130
    assert capfd.readouterr().err == "the job goes on; `tubelet stop a` ends it\n"
    assert not fake.stopped
