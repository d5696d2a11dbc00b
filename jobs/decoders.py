"""Videos decoded for the steps of training, ahead of them and in their order, wherever Ray has a free core.

A clip is a task: what waits is bounded by their number, and if a process dies it is known of which clip.
Pools of Ray Data would try that one again without end, and every worker would need an executor and actors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from jobs.feed import Request
from pipeline.batches import Batch, LiveDataset
from pipeline.errors import Failure
from pipeline.live import Found, Search, Videos, cut_bounded
from pipeline.pools import StalledError

ATTEMPTS = 3  # that a clip has which takes its process down
AHEAD = 4  # clips for each decoder that are begun before they are asked for
DEATHS = (WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)


class _Known:
    """A dataset's videos, where they are in Ray's object store, and its clips that no process outlives."""

    def __init__(self, videos: Videos) -> None:
        self.videos, self.stored, self.deadly = videos, ray.put(videos), set[int]()


class _Task:
    """A clip on its way: tried again if its process dies, and then another one in its place."""

    def __init__(self, known: _Known, clip: int, epoch: int) -> None:
        self._known, self._deaths = known, 0
        self._search = Search(known.videos, clip, epoch)
        self.found: Found | None = None
        self._pass_over()

    def begin(self, cut: ray.remote_function.RemoteFunction) -> ray.ObjectRef:
        """A try."""
        return cut.remote(self._known.stored, self._search.clip, self._search.epoch)

    def end(self, result: ray.ObjectRef) -> None:
        """The try is over; if nothing is `found`, there has to be another one."""
        try:
            answer = ray.get(result)
        except DEATHS:
            self._deaths += 1
            if self._deaths == ATTEMPTS:
                self._known.deadly.add(self._search.clip)
            self._pass_over()
        except RayTaskError as error:  # a line, without the trace of where it was raised
            raise error.cause from None
        else:
            self.found, self._deaths = self._search.take(answer), 0
            if self.found is None:
                self._pass_over()

    def _pass_over(self) -> None:
        """What is deadly is not tried again, in whichever epoch."""
        while self._search.clip in self._known.deadly:
            message = f"its decoder died or hung each of {ATTEMPTS} times"
            name = self._known.videos.name(self._search.clip)
            self._search.take(Failure(name, "decode", "crashed", message, attempts=ATTEMPTS))
            self._deaths = 0


class Decoders:
    """A reader (see jobs.feed): of videos by so many tasks at a time, of shards in place.

    labels: of the nodes that they run on. wait_seconds: how long no clip may be decoded.
    """

    def __init__(self, count: int, labels: Mapping[str, str], wait_seconds: float) -> None:
        self._count, self._wait_seconds = count, wait_seconds
        # Anywhere but in the place that Ray Train set aside for the worker that asks, which fills it itself.
        where = {"scheduling_strategy": "SPREAD", "label_selector": dict(labels) or None}
        self._cut = ray.remote(num_cpus=1, max_retries=0, **where)(cut_bounded)
        self._known: dict[str, _Known] = {}  # of each dataset

    def __call__(self, requests: Iterator[Request]) -> Iterator[Batch]:
        """A batch for each request, in their order.

        Raises:
            StorageError: so many clips cannot be read that it must be the place where they lie.
            StalledError: no clip was decoded for too long.
        """
        coming = self._coming(requests)
        line: deque[_Task | Request] = deque()  # a request comes after its clips
        running: dict[ray.ObjectRef, _Task] = {}
        found: list[Found] = []  # of the request that is next
        while True:
            while len(running) < self._count and len(line) < AHEAD * self._count:
                one = next(coming, None)
                if one is None:
                    break
                line.append(one)
                if isinstance(one, _Task):
                    running[one.begin(self._cut)] = one
            if not line:
                return
            if isinstance(first := line[0], Request):
                yield _batch(first, found)
                found = []
                line.popleft()
            elif first.found is not None:
                found.append(first.found)
                line.popleft()
            else:
                result = self._finished(list(running))
                task = running.pop(result)
                task.end(result)
                if task.found is None:
                    running[task.begin(self._cut)] = task

    def _coming(self, requests: Iterator[Request]) -> Iterator[_Task | Request]:
        for wanted in requests:
            if isinstance(wanted.dataset, LiveDataset):
                if (name := wanted.dataset.name) not in self._known:
                    self._known[name] = _Known(wanted.dataset.videos)
                for clip, epoch in zip(wanted.clips.tolist(), wanted.epochs.tolist(), strict=True):
                    yield _Task(self._known[name], clip, epoch)
            yield wanted

    def _finished(self, results: list[ray.ObjectRef]) -> ray.ObjectRef:
        """The first of them."""
        done, _ = ray.wait(results, num_returns=1, timeout=self._wait_seconds)
        if not done:
            raise StalledError(
                f"no clip was decoded for {self._wait_seconds:.0f} s (ray.wait_seconds): no core is free; "
                "add a node, or lower resources.workers; the same command goes on from the last checkpoint"
            )
        return done[0]


def _batch(wanted: Request, found: list[Found]) -> Batch:
    if isinstance(wanted.dataset, LiveDataset):
        return wanted.dataset.batch(wanted.epochs, found, pinned=wanted.pinned)
    return wanted.read()
