"""Ray, wherever it is: a local one for one job, or a running cluster; and `submit` to one (Ray Jobs)."""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray
import ray.exceptions

import jobs
import models
import pipeline
from jobs.questions import ProbeSpec
from jobs.room import Node, Room
from jobs.spec import EmbedSpec, EvaluateSpec, JobSpec, ShardSpec, TrainSpec, dump
from pipeline.errors import SpecError

# Ray starts in ten seconds, on a busy machine in a minute.
START_SECONDS = 300.0


@contextmanager
def connected(address: str | None) -> Iterator[Room]:
    """Ray for the length of a job. One that is connected already is used, and left as it is.

    Args:
        address: of a running cluster; None is RAY_ADDRESS, and without that a local Ray is started here.

    Raises:
        SpecError: no cluster answers there.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    mine = not ray.is_initialized()
    on_terminate = signal.getsignal(signal.SIGTERM)
    if mine:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            # Of this Ray's own C++ log only what is fatal: it goes to the terminal, whatever the level above.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # Ray's own small tasks need a place beside actors that hold every core.
            with _starting():
                ray.init("local", num_cpus=cores() + 1, include_dashboard=False, **quiet)
        else:
            try:
                _answers(address)
                with _starting():
                    ray.init(address, **quiet)
            except (OSError, ValueError, ray.exceptions.RayError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise SpecError("ray.address", address, f"no cluster answers there ({reason})") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # which Ray has taken for itself
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised, and told by us
    try:
        room = Room.of(list(_nodes()), may_grow=address is not None)
        alone = mine and address is None
        yield replace(room, places=None) if alone else room
    finally:
        if mine:
            ray.shutdown()


def _nodes() -> Iterator[Node]:
    """The nodes that workers can run on: a head without cores is none of them."""
    for node in ray.nodes():
        has = node["Resources"]
        if node["Alive"] and (has.get("CPU") or has.get("GPU")):
            yield Node(has.get("CPU", 0.0), has.get("GPU", 0.0), node["Labels"])


def _answers(address: str) -> None:
    """Raise OSError within seconds where Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _starting() -> Iterator[None]:
    """Drop what native code writes to the terminal, and do not wait for ever.

    Ray announces even that its log level was set. And where the time of day is put back while it starts, it
    waits in C++, with Python's lock held, until that time has come again: no thread and no handler of a
    signal gets a turn, but this timer of the interpreter's does. It says where Ray was and ends the process.
    """
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    faulthandler.dump_traceback_later(START_SECONDS, exit=True, file=terminal)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        faulthandler.cancel_dump_traceback_later()
        os.close(terminal)
        os.close(nowhere)


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def full_paths(spec: JobSpec) -> list[tuple[str, str]]:
    """The field and the value of every path in a spec.

    Raises:
        SpecError: one is relative, which means nothing elsewhere.
    """
    paths: list[tuple[str, str | None]] = [("output.path", spec.output.path)]
    if isinstance(spec, TrainSpec | EvaluateSpec):
        paths += [(f"data.{name}.shards", data.shards) for name, data in spec.data.items()]
    if isinstance(spec, TrainSpec):
        paths += [(f"validation.data.{name}.shards", x.shards) for name, x in spec.validation.data.items()]
    if isinstance(spec, ShardSpec | EmbedSpec):
        several = spec.input.path if isinstance(spec.input.path, tuple) else (spec.input.path,)
        paths += [("input", path) for path in (*several, spec.input.shards)]
        paths.append(("input.root", spec.input.root))
    if isinstance(spec, ProbeSpec):
        paths.append(("embeddings", spec.embeddings))
    elif not isinstance(spec, ShardSpec):
        paths.append(("model.checkpoint", spec.model.checkpoint))
    found = [(field, path) for field, path in paths if path is not None]
    for field, path in found:
        if "://" not in path and not Path(path).is_absolute():
            raise SpecError(
                field, path, "a relative path means nothing on a cluster; give a URI or a full path"
            )
    return found


def submit(spec: JobSpec, address: str, submission_id: str | None = None) -> str:
    """Send this code and a spec to a cluster's job server; returns the submission id.

    The spec is taken as it is: its paths must mean the same thing on the cluster's nodes.

    Raises:
        SpecError: no job server answers at `address`, or it refuses the job.
    """
    from ray.job_submission import JobSubmissionClient

    full_paths(spec)
    with tempfile.TemporaryDirectory() as folder:
        for package in (pipeline, models, jobs):
            source = Path(str(package.__file__)).parent
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, Path(folder) / source.name, ignore=ignored)
        (Path(folder) / "spec.yaml").write_text(dump(spec))
        try:
            client = JobSubmissionClient(address)
            return client.submit_job(
                entrypoint="python -m jobs run spec.yaml",
                submission_id=submission_id,
                runtime_env={"working_dir": folder},
                metadata={"kind": spec.kind, "output": spec.output.path},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SpecError("--address", address, f"the job was not taken ({reason})") from None
