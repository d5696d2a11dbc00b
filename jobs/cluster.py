"""Ray, wherever it is: a local one for one job, or a running cluster."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import ray
import ray.exceptions

from jobs.room import Node, Room
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


def room(address: str | None, *, with_gpus: bool) -> Room:
    """What a job would find: the cluster that is named, or this machine, on which no Ray is started for that.

    Args:
        with_gpus: whether to look for GPUs of this machine, which takes seconds.

    Raises:
        SpecError: no cluster answers there.
    """
    if address or os.environ.get("RAY_ADDRESS") or ray.is_initialized():
        with connected(address) as there:
            return there
    return Room(1, float(cores()), float(gpus()) if with_gpus else 0.0)


def gpus() -> int:
    """GPUs that this process may use."""
    import torch  # which a process that only decodes does without

    return torch.cuda.device_count()


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
