"""A process beside this one, for what may crash or hang: it can be asked again, and ends with its asker."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import ParamSpec, Self, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
# Python starts in a second, on a busy machine in many.
START_SECONDS = 120.0


class CrashedError(RuntimeError):
    """The process died of what it was asked."""


class Apart:
    """Calls functions in another process, one at a time; one that died or was ended is started again."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, timeout_seconds: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What `function` gives there; it, its arguments and its result travel as pickles.

        Starting the process is not counted.

        Raises:
            CrashedError: the process died.
            TimeoutError: it took longer, and was ended.
            Exception: what the function raised.
        """
        connection = self._start()
        try:
            connection.send((function, args, kwargs))
            if not connection.poll(max(0.0, timeout_seconds)):
                self.end()
                raise TimeoutError(f"took longer than {timeout_seconds:.0f} s")
            answer, error = connection.recv()
        except (EOFError, ConnectionError):
            self.end()
            raise CrashedError("its process died") from None
        if error is not None:
            raise error
        return answer

    def end(self) -> None:
        """End the process, if there is one, whatever it is doing."""
        if self._process is not None and self._connection is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
        self._process = self._connection = None

    def _start(self) -> Connection:
        if self._connection is not None:
            return self._connection
        # A new interpreter: a fork would share locks, and what this process has in memory would be counted.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        try:
            if not self._connection.poll(START_SECONDS):
                raise TimeoutError(f"a process did not start within {START_SECONDS:.0f} s")
            self._connection.recv()
        except EOFError:
            self.end()
            raise RuntimeError("a process could not be started to measure in") from None
        return self._connection


def _serve(connection: Connection) -> None:
    """In that process: answer until the asker closes the connection, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both; the asker ends this one
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # what libraries say of damaged files, and last words
    connection.send(None)
    while True:
        try:
            function, args, kwargs = connection.recv()
        except EOFError:
            return
        reply: tuple[object, Exception | None]
        try:
            reply = (function(*args, **kwargs), None)
        except Exception as error:
            reply = (None, error)
        try:
            connection.send(reply)
        except (TypeError, AttributeError, ValueError) as error:  # it cannot be pickled
            connection.send((None, RuntimeError(f"{reply[1] or error}")))
