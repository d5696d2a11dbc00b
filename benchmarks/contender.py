"""A reader in a process of its own, which is asked to do one task at a time."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from typing import Any

from benchmarks.readers import Task, serve

PATIENCE_SECONDS = 600


@dataclass
class Contender:
    """Started when it is first asked, and anew when it has died or hung."""

    name: str
    environment: dict[str, str]
    process: Any = None
    pipe: Any = None

    def ask(self, task: Task) -> tuple[dict[str, float], list[Any]] | str:
        """CPU ms and the first and last clip, or what went wrong."""
        if self.process is None:
            self._start()
            # What is loaded, and compiled, at first use is no part of reading a clip.
            self._answer(task)
        return self._answer(task)

    def stop(self) -> None:
        if self.process is not None:
            self.pipe.close()
            self.process.join(5)
            self.process.kill()
            self.process = None

    def _answer(self, task: Task) -> tuple[dict[str, float], list[Any]] | str:
        if self.process is None:
            return "its process died"
        try:
            self.pipe.send(task)
            if self.pipe.poll(PATIENCE_SECONDS):
                return self.pipe.recv()
            answer = f"not done after {PATIENCE_SECONDS} s"
        except (EOFError, OSError):
            answer = "its process died"
        self.stop()
        return answer

    def _start(self) -> None:
        context, before = multiprocessing.get_context("spawn"), dict(os.environ)
        self.pipe, other = context.Pipe()
        os.environ.update(
            self.environment
        )  # the new process inherits it; there is no other way to give it one
        try:
            self.process = context.Process(target=serve, args=(self.name, other), daemon=True)
            self.process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        other.close()
