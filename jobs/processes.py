"""What the processes of a job that work together have: a process group, and word of when to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import torch
import torch.distributed as dist


@contextmanager
def terminated() -> Iterator[Event]:
    """Set by SIGTERM, where a handler of it can be had: Python allows one to the main thread alone."""
    stopped = Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def processes() -> Iterator[torch.device]:
    """This process' device, with a process group: the one there is, torchrun's, or one of its own."""
    if dist.is_initialized():  # by Ray, which has also chosen a GPU, or none
        cuda = "nccl" in dist.get_backend()
        yield torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        return
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if cuda else "gloo", **({} if "RANK" in os.environ else alone))
    try:
        yield device
    finally:
        dist.destroy_process_group()
