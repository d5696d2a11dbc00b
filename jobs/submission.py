"""Jobs on a cluster: sent to its job server (Ray Jobs) together with this code, known there by a stable id.

Ray starts a job once. If it dies, what it has done is in its output folder, and the same job goes on from
there when it is submitted again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jobs
import models
import pipeline
from jobs.environment import requirements
from jobs.questions import ProbeSpec
from jobs.server import POLL_SECONDS, answering, connect, patiently
from jobs.spec import ClusterSpec, EmbedSpec, JobSpec, ShardSpec, dump
from pipeline.errors import SpecError, SpecListError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
EXIT_CODES: dict[Status, int] = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 3, "RUNNING": 4, "PENDING": 4}
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")

LIMIT_BYTES = 100 << 20  # of a request that a job server takes
NOT_CODE = {"__pycache__", "runs", "build", "dist"}  # and what is hidden
# Between a stop's SIGTERM and SIGKILL, where Ray leaves 3 s: training saves a checkpoint in it.
STOP_SECONDS = 120


@dataclass(frozen=True)
class Submitted:
    """A job on a cluster, running or not: `Submitted(connect(address), submission_id)` is one of earlier.

    Every method raises SpecError if the job server does not answer, or has no such job.
    """

    client: JobSubmissionClient
    submission_id: str

    @property
    def address(self) -> str:
        return str(self.client.get_address())

    def details(self) -> JobDetails:
        """What Ray knows of it: message, metadata, start_time and end_time in milliseconds, and more."""
        with answering(self.address):
            try:
                return self.client.get_job_info(self.submission_id)
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
        problem = "there is no such job; `tubelet list` shows those that there are"
        raise SpecError("ID", self.submission_id, problem) from None

    def status(self) -> Status:
        """One of PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED; EXIT_CODES has a number for each."""
        return status_of(self.details())

    def logs(self) -> str:
        """All that it has printed so far."""
        with answering(self.address):
            return str(self.client.get_job_logs(self.submission_id))

    def follow(self) -> Iterator[str]:
        """What it prints, piece by piece, until it has ended."""
        told, ended = 0, False
        while not ended:
            begun = time.monotonic()
            ended = patiently(self.status) in ENDED  # asked first, so that the last words are not missed
            text = patiently(self.logs)
            if len(text) > told:
                yield text[told:]
                told = len(text)
            if not ended:  # each time the log comes whole: a long one is asked for less often
                time.sleep(max(POLL_SECONDS, 10 * (time.monotonic() - begun)))

    def wait(self, timeout_seconds: float | None = None) -> Status:
        """Its status once it has ended, or when the time is up."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while (status := patiently(self.status)) not in ENDED:
            if deadline is not None and time.monotonic() >= deadline:
                break
            time.sleep(POLL_SECONDS)
        return status

    def stop(self) -> Status:
        """End it, if it has not ended yet: training saves a checkpoint, anything else what it has committed.

        Returns:
            its status; RUNNING or PENDING if it has not ended after STOP_SECONDS and some.
        """
        if self.status() not in ENDED:
            with answering(self.address):
                self.client.stop_job(self.submission_id)
        return self.wait(STOP_SECONDS + 10)


def submit(
    spec: JobSpec,
    address: str | None = None,
    *,
    extend: bool = False,
    retry_failed: bool = False,
    watch_seconds: float | None = None,
) -> Submitted:
    """Send a job and this code to a cluster. One that has ended is sent again, and resumes.

    Args:
        spec: its paths must mean the same thing on the cluster's nodes.
        address: the cluster's job server, http://HEAD:8265; None is RAY_API_SERVER_ADDRESS.
        extend, retry_failed, watch_seconds: what else to do, as of `tubelet run`.

    Raises:
        SpecError: the spec cannot be met there, the job is running already, or the server does not take it.
    """
    if isinstance(spec, ProbeSpec):
        raise SpecError("kind", spec.kind, "one process does it, without a cluster: tubelet run")
    options = ["--extend"] * extend + ["--retry-failed"] * retry_failed
    options += [] if watch_seconds is None else [f"--watch {watch_seconds:g}"]
    if options and not isinstance(spec, ShardSpec | EmbedSpec):
        raise SpecError(" ".join(options), True, f"a job of kind {spec.kind} takes none of these")
    relative = list(_relative_paths(spec.model_dump(mode="json"), spec.absolute().model_dump(mode="json")))
    if relative:
        problem = "a relative path means nothing on a cluster; give a URI or a full path"
        raise SpecListError([str(SpecError(field, path, problem)) for field, path in relative])
    pip = requirements(spec.ray.environment.pip)
    environment, entrypoint = spec.ray.environment, spec.ray.entrypoint
    text, files = dump(_sent(spec, pip)), {} if environment.image else code()
    runtime_env: dict[str, Any] = {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **environment.env}
    }
    client = connect(address)
    with tempfile.TemporaryDirectory() as folder:
        if environment.image:  # beside which Ray takes no working directory
            runtime_env |= {"image_uri": environment.image}
            command = f"{' '.join(['/dev/stdin', *options])} <<'SPEC'\n{text}SPEC"
        else:
            runtime_env |= {"working_dir": folder} | ({"pip": list(pip)} if pip else {})
            command = " ".join(["spec.yaml", *options])
            (Path(folder) / "spec.yaml").write_text(text)
            for name, path in files.items():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, Path(folder) / name)

        def send() -> str:
            with answering(client.get_address()):
                return client.submit_job(
                    entrypoint=f"python3 -m jobs run {command}",
                    submission_id=_free_id(submission_id(spec), client),
                    runtime_env=runtime_env,
                    metadata={"kind": spec.kind, "output": spec.output.path},
                    entrypoint_num_cpus=entrypoint.cpus or None,
                    entrypoint_num_gpus=entrypoint.gpus or None,
                    entrypoint_memory=entrypoint.memory_bytes or None,
                )

        return Submitted(client, patiently(send))  # a head that has just started takes no job for a while


def submission_id(spec: ClusterSpec) -> str:
    """What a job is called: the same for every spec of this identity with this output, whoever submits it."""
    output = spec.output.path.rstrip("/")
    asked = json.dumps({**spec.identity(), "output": output}, sort_keys=True)
    name = re.sub(r"[^A-Za-z0-9]+", "-", output.rpartition("/")[2])[:40].strip("-")
    return "-".join(filter(None, (spec.kind, name, hashlib.sha256(asked.encode()).hexdigest()[:8])))


def status_of(job: JobDetails) -> Status:
    """One of PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED."""
    return job.status.value


def listed(client: JobSubmissionClient) -> list[dict[str, str | None]]:
    """All jobs that were submitted to a cluster, the latest last: id, status, kind, output, begun, ended."""
    with answering(client.get_address()):
        found = [job for job in client.list_jobs() if job.submission_id]
    rows = []
    for job in sorted(found, key=lambda job: job.start_time or 0):
        asked = job.metadata or {}
        times = {"begun": _time(job.start_time), "ended": _time(job.end_time)}
        named = {"kind": asked.get("kind"), "output": asked.get("output")}
        rows.append({"id": job.submission_id, "status": status_of(job), **named, **times})
    return rows


def code() -> dict[str, Path]:
    """The files of the three packages, by their names in the job's working directory.

    Raises:
        SpecError: together they are more than a job server takes.
    """
    files = {}
    for package in (pipeline, models, jobs):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root.parent)
            if path.is_file() and not any(part.startswith(".") or part in NOT_CODE for part in name.parts):
                files[name.as_posix()] = path
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > LIMIT_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        shown = ", ".join(f"{name} ({sizes[name] / 1e6:.1f} MB)" for name in largest)
        problem = f"a job server takes {LIMIT_BYTES / 1e6:.0f} MB; move away what is no code: {shown}"
        raise SpecError("code", f"{sum(sizes.values()) / 1e6:.1f} MB", problem)
    return files


def _sent(spec: ClusterSpec, pip: tuple[str, ...]) -> ClusterSpec:
    """The spec as the job gets it: on the cluster that it is on, and without values that may be secrets."""
    environment = spec.ray.environment.model_copy(update={"pip": pip or None, "env": {}})
    cluster = spec.ray.model_copy(update={"address": None, "environment": environment})
    return spec.model_copy(update={"ray": cluster})


def _relative_paths(given: Any, meant: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Fields that hold a path which depends on the working directory: that of which is another."""
    if isinstance(given, Mapping):
        for name, value in given.items():
            yield from _relative_paths(value, meant[name], f"{field}.{name}" if field else name)
    elif isinstance(given, list):
        for value, other in zip(given, meant, strict=True):
            yield from _relative_paths(value, other, field)
    elif given != meant and not Path(given).is_absolute():
        yield field, given


def _free_id(name: str, client: JobSubmissionClient) -> str:
    """A job's name, with a number if that is taken: no server takes one twice. SpecError if it is running."""
    attempts = 0
    for job in client.list_jobs():
        found = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", job.submission_id or "")
        if found is None:
            continue
        if status_of(job) not in ENDED:
            problem = "is on its way already; `tubelet logs ID -f` follows it, `tubelet stop ID` ends it"
            raise SpecError("ID", job.submission_id, problem)
        attempts = max(attempts, int(found[1] or 1))
    return f"{name}-{attempts + 1}" if attempts else name


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1e3, UTC).isoformat(timespec="seconds")
