"""A process for test_lock.py that takes a run's folder and leaves it: a verb a line of its input.

python holder.py RUN_URI FOLDER SECONDS: who holds the run in a race makes the folder; SECONDS is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pipeline import lock
from pipeline.errors import SpecError


class Other:
    """Such a process, as a test sees it."""

    def __init__(self, uri: str, inside: Path, seconds: dict[str, float]):
        command = [sys.executable, __file__, uri, str(inside), json.dumps(seconds)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(command, env=environment, text=True, bufsize=1, **pipes)
        assert self.answer() == "ready"

    def say(self, verb: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{verb}\n")

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, verb: str) -> str:
        self.say(verb)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


held = ExitStack()
clocks = time.time, time.time_ns
check: Callable[[], None]


def take(uri: str) -> str:
    global check
    try:
        check = held.enter_context(lock.only_writer(uri))
    except SpecError as error:
        return f"refused: {error}"
    return "held"


def ask() -> str:
    try:
        check()
    except lock.LockLostError as error:
        return f"lost: {error}"
    return "held"


def race(uri: str, inside: Path) -> str:
    answer = take(uri)
    if answer == "held":
        try:
            inside.mkdir()  # only one at a time can
        except FileExistsError:
            return "both"
        time.sleep(0.2)
        inside.rmdir()
        held.close()
    return answer


def jump(days: int) -> str:
    time.time = lambda: clocks[0]() + days * 86_400
    time.time_ns = lambda: clocks[1]() + days * 86_400 * 10**9
    return "jumped"


def main(uri: str, inside: str, seconds: str) -> None:
    vars(lock).update(json.loads(seconds))
    verbs = {
        "take": lambda: take(uri),
        "ask": ask,
        "race": lambda: race(uri, Path(inside)),
        "leave": lambda: held.close() or "left",
        "forward": lambda: jump(1),
        "back": lambda: jump(-1),
        "end": sys.exit,
    }
    print("ready", flush=True)
    for line in sys.stdin:
        print(verbs[line.strip()](), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
