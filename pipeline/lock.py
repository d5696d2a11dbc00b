"""One writer per run folder (contract C6): flock on a disk, an expiring lease on an object store.

A lease is an object below `.lease/` that its owner puts again every few seconds. Whoever wants the folder
puts one, then lists, and holds the folder only if no other is there: of two at once, the one that lists last
sees both. That needs no conditional put, only lists that show every finished put, as those of S3 and GCS do.
No two clocks are compared. Who watches a lease for EXPIRY_SECONDS and sees no change removes it; by then its
owner, if it lives, has given up by itself, LOST_SECONDS after it began its last renewal.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from pipeline.errors import SpecError, StorageError
from pipeline.storage import Location, locate, write_atomic

RENEW_SECONDS = 5.0
LOST_SECONDS = 15.0
EXPIRY_SECONDS = 20.0
POLL_SECONDS = 1.0  # between two looks at the leases of others
LEAVE_SECONDS = 5.0  # at most, for removing a lease: if the store hangs, it expires by itself
LEASE_BYTES = 256


class LockLostError(RuntimeError):
    """This process no longer holds the run's folder, and another may be writing to it."""


@contextmanager
def only_writer(run_uri: str, say: Callable[[str], None] | None = None) -> Iterator[Callable[[], None]]:
    """Hold a run's folder for this process; what it yields raises LockLostError if that has ended.

    A killed holder's lock is gone at once on a disk; on an object store it takes EXPIRY_SECONDS of watching.

    Args:
        say: is told, in one line, that there is something to wait for.

    Raises:
        SpecError: another process holds it, or it cannot be written to.
    """
    place = locate(run_uri, "output.path")
    say = say or (lambda _: None)
    with _flock(place, run_uri) if place.is_local else _lease(place, run_uri, say) as check:
        yield check


@contextmanager
def _flock(place: Location, run_uri: str) -> Iterator[Callable[[], None]]:
    try:
        Path(place.path).mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{place.path}/.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SpecError("output.path", run_uri, f"cannot be written to ({error.strerror})") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = "another run is writing to it; wait for it or choose another"
            raise SpecError("output.path", run_uri, problem) from None
        except OSError as error:
            raise SpecError("output.path", run_uri, f"cannot be locked ({error.strerror})") from None
        yield lambda: None  # the kernel takes it from nobody who lives
    finally:
        os.close(handle)


@contextmanager
def _lease(place: Location, run_uri: str, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    lease, stop = _Lease(place / ".lease", run_uri), threading.Event()
    keeper = threading.Thread(target=lease.keep, args=(stop,), name="lease", daemon=True)
    try:
        try:
            lease.put()
            keeper.start()
            _outlast_others(lease, run_uri, say)
        except (OSError, pa.ArrowException, StorageError) as error:
            cause = error.__cause__ or error
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            raise SpecError("output.path", run_uri, f"cannot be written to ({reason})") from None
        lease.holds = True
        yield lease.check
    finally:
        stop.set()
        if keeper.is_alive():
            keeper.join(LEAVE_SECONDS)


class _Lease:
    """This process's own lease. After the first put only its keeper, a thread, touches the object."""

    def __init__(self, folder: Location, run_uri: str):
        self.folder = folder
        self.name = f"{uuid.uuid4().hex}.json"
        self.holds = False  # True: its owner has the folder; False: it wants it
        self._run_uri = run_uri
        self._puts = 0
        self._renewed = _now()
        self._lost = ""  # why; what is lost stays lost

    def put(self) -> None:
        """Put it, or renew it."""
        began = _now()
        if self._puts and not (self.folder / self.name).exists():
            self._lost = "another run took it over"
        self.check()
        self._puts += 1
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        content = {**owner, "puts": self._puts, "holds": self.holds}
        write_atomic(self.folder / self.name, json.dumps(content).ljust(LEASE_BYTES).encode())
        self.check()  # a renewal that took too long comes too late: somebody may have seen no change
        self._renewed = began

    def check(self) -> None:
        if not self._lost and _now() - self._renewed > LOST_SECONDS:
            self._lost = f"its lease was not renewed for {LOST_SECONDS:g} s: suspended, or the store is away"
        if self._lost:
            raise LockLostError(
                f"{self._run_uri} is no longer this run's ({self._lost}); what is committed stays, "
                "and the same command goes on from there"
            )

    def keep(self, stop: threading.Event) -> None:
        """Renew it until `stop` is set or it is lost, then remove it."""
        while not stop.wait(RENEW_SECONDS):
            try:
                self.put()
            except LockLostError:
                break
            except Exception:  # whatever it is: it may pass, and if not, time runs out in check()
                continue
        with suppress(Exception):
            (self.folder / self.name).delete()

    def others(self) -> dict[str, bytes]:
        """The content of every other lease, by name."""
        found = {}
        for name in {info.base_name for info in self.folder.files()} - {self.name}:
            place = self.folder / name
            try:
                found[name] = place.read_bytes()
            except OSError:  # of several kinds, if it was removed while it was being opened
                if place.exists():
                    raise
        return found


def _outlast_others(lease: _Lease, run_uri: str, say: Callable[[str], None]) -> None:
    """Return once no other lease is there. Of several that want the folder, the least name stays."""
    seen: dict[str, tuple[bytes, float]] = {}  # content, and since when it has been that
    while True:
        asked = _now()
        others = lease.others()
        lease.check()
        if not others:
            return
        for name, content in others.items():
            if name not in seen:
                say(f"{_owner(content)[0]} wants or has output.path; waiting for a sign of life ...")
            known, since = seen.setdefault(name, (content, _now()))
            if content != known:
                owner, holds = _owner(content)
                if holds or name < lease.name:
                    problem = f"{owner} is writing to it; wait for it or choose another"
                    raise SpecError("output.path", run_uri, problem)
                seen[name] = (content, _now())
            elif asked - since >= EXPIRY_SECONDS:
                with suppress(FileNotFoundError):
                    (lease.folder / name).delete()
        time.sleep(POLL_SECONDS)


def _owner(content: bytes) -> tuple[str, bool]:
    """Whose lease it is, in words, and whether that one has the folder."""
    try:
        lease = json.loads(content)
        return f"another run (host {lease['host']}, pid {lease['pid']})", bool(lease["holds"])
    except (ValueError, KeyError, TypeError):
        return "another run", True


def _now() -> float:
    """Seconds of a clock that nobody sets, and that, on Linux, goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
