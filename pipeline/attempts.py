"""How often a unit was begun, kept beside it: the only retry logic of our own (contract C7).

The worker that decodes is the child process that an input can cost: if it crashes, or hangs and is ended, Ray
starts another one and begins the unit again. From the second time on each input is noted before it is
decoded, so that one which takes its decoder down again and again is told from its neighbours and left out.
"""

from __future__ import annotations

import faulthandler
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray

from pipeline.commits import Run
from pipeline.errors import Reason
from pipeline.storage import Location, write_atomic


def _node() -> str:
    """Ray's name for the node of this process."""
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def _is_alive(node: str) -> bool:
    return any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())


def longest_seconds(timeout_seconds: float) -> float:
    """How long an input can take before its process is ended."""
    return timeout_seconds * 1.1 + 5


@contextmanager
def bounded(timeout_seconds: float) -> Iterator[None]:
    """End this process if what is inside hangs in a library, where it cannot be interrupted.

    What merely takes long notices that by itself before. A thread of C code keeps the time, so it passes
    even if the interpreter is not let go.
    """
    faulthandler.dump_traceback_later(longest_seconds(timeout_seconds), exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@dataclass
class Attempts:
    """One unit's counter.

    Deaths count within one run of the job, and on nodes that live on: neither killing a job nor losing a node
    is an input's fault.

    most: how often an input is tried.
    """

    run: Run
    unit: int
    session: str
    most: int
    timeout_seconds: float
    starts: int = 0
    unnamed: int = 0  # 1 if the first start ended in a death, which was before inputs were noted
    deaths: dict[str, int] = field(default_factory=dict)
    causes: dict[str, Reason] = field(default_factory=dict)

    def begin(self) -> Attempts:
        """Count this start, and the death of the input that was being decoded when the last one ended."""
        if self._place.exists():
            try:
                noted = json.loads(self._place.read_bytes())
            except json.JSONDecodeError:
                noted = {}
            if noted.get("session") == self.session:
                self.starts, self.unnamed = noted["starts"], noted["unnamed"]
                self.deaths, self.causes = noted["deaths"], noted["causes"]
                if noted["node"] == _node() or _is_alive(noted["node"]):
                    self._bury(noted["at"], noted["since"])
        self.starts += 1
        self._write(None)
        return self

    def _bury(self, item: str | None, since: float) -> None:
        if item is None:
            self.unnamed = int(self.starts == 1)
            return
        # Units are decoded in order: what died without a name was most likely this one, too.
        self.deaths[item] = self.deaths.get(item, 0) + 1 + self.unnamed
        self.causes[item] = "timeout" if time.time() - since >= self.timeout_seconds else "crashed"
        self.unnamed = 0

    def verdict(self, item: int) -> tuple[Reason, int] | None:
        """Why item number `item` of the unit is not tried again, and how often it was; None: try it."""
        deaths = self.deaths.get(str(item), 0)
        return (self.causes[str(item)], deaths) if deaths >= self.most else None

    def note(self, item: int | None) -> None:
        """Item number `item` of the unit is about to be decoded; None: all of them are."""
        if self.starts > 1 or self.most == 1:
            self._write(None if item is None else str(item))

    def end(self) -> None:
        """The unit is committed."""
        if self._place.exists():
            self._place.delete()

    @property
    def _place(self) -> Location:
        return self.run.place / f"attempts/{self.run.name(self.unit)}.json"

    def _write(self, at: str | None) -> None:
        noted = {
            "session": self.session,
            "starts": self.starts,
            "unnamed": self.unnamed,
            "deaths": self.deaths,
            "causes": self.causes,
            "at": at,
            "node": _node(),
            "since": time.time(),
        }
        write_atomic(self._place, json.dumps(noted).encode())
