"""A decoder that some inputs kill or hang; in a module of its own, for other processes to import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.stages import Cutting


@dataclass(frozen=True)
class Deadly(Cutting):
    """Dies of murder.webm as by a segmentation fault, and hangs in sleep.webm where no signal reaches it."""

    def unit(self, row: dict[str, Any], *rest: Any) -> Iterator[pa.RecordBatch]:
        if row["items"][0]["uri"] == "murder.webm":
            os.kill(os.getpid(), signal.SIGSEGV)
        if row["items"][0]["uri"] == "sleep.webm":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(600)
        return super().unit(row, *rest)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def pid() -> int:
    return os.getpid()


def throw(error: Exception) -> None:
    raise error
