"""What fails around a job while it runs: no room, no permission, refusals; inputs and clocks change."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.disturbed import Bench, Command, Job, Outcome, Round, digests, uri_of
from benchmarks.refusing import KEYS, Store, object_store
from pipeline.storage import locate

# Root without the right to write where modes forbid it.
MORTAL = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--")
TMPFS_BYTES = 64 << 20


class NotHereError(Exception):
    """This machine does not let the fault be made."""


# --- where it writes ----------------------------------------------------------------------------------------


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(folder)]
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise NotHereError("needs to mount a tmpfs: run it as root, or in `unshare -rm`") from None
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def disk_full(kind: str) -> Round:
    """Something else takes all of the disk's room, and later gives it back."""

    def round(bench: Bench, random: random.Random, number: int) -> Outcome:
        outcome, units = Outcome(), bench.units(kind)
        job = bench.job(kind)
        with _small_disk(job.folder / "disk") as disk:
            job.output = str(disk / "out")
            command = job.start()
            command.reach(random.randrange(1, units // 2))
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            command.fails_clearly(outcome, job.output, "No space left on device", "make room there")
            kept = job.committed()
            outcome.notes.append(f"{kept} of {units} units committed")
            filler.unlink()
            _rerun(bench, job, outcome, kept)
        return outcome

    return round


def read_only(kind: str) -> Round:
    """The output's folders lose their write permission in mid-run."""

    def round(bench: Bench, random: random.Random, number: int) -> Outcome:
        outcome, units = Outcome(), bench.units(kind)
        job, root = bench.job(kind), os.geteuid() == 0
        if root and shutil.which("setpriv") is None:
            raise NotHereError("needs setpriv: root may write anywhere")
        job.prefix = MORTAL if root else ()
        output = Path(job.output)
        command = job.start()
        command.reach(random.randrange(1, units // 2))
        _modes(output, 0o555)
        command.fails_clearly(outcome, job.output, "Permission denied", "make it writable")
        kept = job.committed()
        job.start().fails_clearly(outcome, job.output, "ermission denied")  # and from its start
        _modes(output, 0o755)
        _rerun(bench, job, outcome, kept)
        return outcome

    return round


def _modes(folder: Path, mode: int) -> None:
    for inside in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        inside.chmod(mode)


def _rerun(bench: Bench, job: Job, outcome: Outcome, kept: int) -> None:
    """The fault is gone: what was committed is there, the rest is done, and all is as in a quiet run."""
    if job.committed() < kept:
        outcome.wrong.append("committed units are gone")
    job.to_the_end(outcome)
    bench.compare(job, outcome)


# --- object stores ------------------------------------------------------------------------------------------


def refused_puts(status: int, every: int, *words: str) -> Round:
    """A store that answers every so many puts with a status. words: of the error; none: the job goes on."""

    def round(bench: Bench, random: random.Random, number: int) -> Outcome:
        outcome, units = Outcome(), bench.units("shard")
        with object_store() as store, _keys():
            locate(f"s3://bucket?{store.query}").filesystem.create_dir("bucket")
            job = bench.job("shard", output=f"s3://bucket/out?{store.query}", environment=KEYS)
            command = job.start()
            command.reach(random.randrange(1, units // 2))
            store.refuse(("PUT", "POST"), status, every)
            _through(command, store, outcome, words, "bucket/out")
            kept = job.committed()
            _rerun(bench, job, outcome, kept)
        return outcome

    return round


def refused_gets(status: int, every: int, *words: str) -> Round:
    """The same of requests for inputs. A store that does not answer is not the fault of its videos."""

    def round(bench: Bench, random: random.Random, number: int) -> Outcome:
        outcome, units = Outcome(), bench.units("shard")
        with object_store() as store, _keys():
            place = locate(f"s3://bucket/in?{store.query}")
            place.filesystem.create_dir("bucket")
            for path in bench.corpus.iterdir():
                with place.filesystem.open_output_stream((place / path.name).path) as stream:
                    stream.write(path.read_bytes())
            job = bench.job("shard", input=f"s3://bucket/in?{store.query}", environment=KEYS)
            command = job.start()
            command.reach(random.randrange(1, units // 4))
            store.refuse(("GET", "HEAD"), status, every)
            _through(command, store, outcome, words, "bucket/in")
            job.to_the_end(outcome)
            bench.compare(job, outcome)
            _no_failures(job, outcome)
        return outcome

    return round


def _through(command: Command, store: Store, outcome: Outcome, words: tuple[str, ...], where: str) -> None:
    if words:
        command.fails_clearly(outcome, where, *words)
    else:  # it may be one request that is refused each time it is tried
        _one_line(command.finish(outcome), command.said(), outcome)
    outcome.notes.append(f"{store.refused} requests refused")
    if not store.refused:
        outcome.wrong.append("nothing was refused")
    store.relent()


def _one_line(code: int | None, said: str, outcome: Outcome) -> bool:
    """Whether it succeeded; else it must have ended in a line that says why."""
    if code != 0:
        told = code == 1 and "Traceback" not in said
        lines = said.strip().splitlines()
        # What the interpreter says of a Ray that does not start is followed by where it was.
        why = next((line for line in lines if line.startswith(("failed: ", "Timeout"))), lines[-1])
        (outcome.notes if told else outcome.wrong).append(f"exit code {code}: {why}")
    return code == 0


@contextmanager
def _keys() -> Iterator[None]:
    """The store's keys for this process, too."""
    before = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


# --- inputs -------------------------------------------------------------------------------------------------


def delete(victims: list[Path]) -> None:
    for path in victims:
        path.unlink()


def truncate(victims: list[Path]) -> None:
    for path in victims:
        os.truncate(path, path.stat().st_size // 2)


def replace(victims: list[Path]) -> None:
    """Each by the next one's content, as by a tool that writes beside and renames."""
    for path, other in zip(victims, [*victims[1:], victims[0]], strict=True):
        shutil.copy(other, path.with_name(f".{path.name}.new"))
    for path in victims:
        path.with_name(f".{path.name}.new").replace(path)


def changed_inputs(change: Callable[[list[Path]], None], must_fail: bool) -> Round:
    """A third of the inputs change in mid-run: each has rows or failures, and the others what they had."""

    def round(bench: Bench, random: random.Random, number: int) -> Outcome:
        outcome, units = Outcome(), bench.units("shard")
        job = bench.job("shard")
        job.input = str(bench.copy_corpus(job.folder / "in"))
        for path in Path(job.input).iterdir():  # a row names its input's modification time
            shutil.copystat(bench.corpus / path.name, path)
        videos = sorted(Path(job.input).iterdir())
        victims = [path for at, path in enumerate(videos) if at % 3 == 0]
        command = job.start()
        command.reach(random.randrange(1, units // 4))
        change(victims)
        if command.finish(outcome) != 0:
            outcome.wrong.append(f"the job ended: {command.said().strip().splitlines()[-1]}")
            job.to_the_end(outcome)
        names = frozenset(path.name for path in victims)
        bench.compare(job, outcome, names)
        failed, present = _failed(job), _uris(job)
        gone = names - failed - present
        outcome.lost += len(gone)
        if failed - names:
            outcome.wrong.append(f"failures of inputs that were not touched: {sorted(failed - names)}")
        if must_fail and not failed:
            outcome.wrong.append("no failure row")
        outcome.notes.append(f"{len(names)} inputs changed, {len(failed)} of them have failures")
        return outcome

    return round


def _failed(job: Job) -> set[str]:
    folder = Path(job.output) / "failures"
    return (
        set(pq.read_table(folder)["uri"].to_pylist()) if folder.exists() and any(folder.iterdir()) else set()
    )


def _uris(job: Job) -> set[str]:
    return {uri_of(clip_id) for clip_id, _ in digests(locate(job.output))}


def _no_failures(job: Job, outcome: Outcome) -> None:
    if failed := _failed(job):
        outcome.wrong.append(f"failures of innocent inputs: {sorted(failed)[:3]}")


# --- the clock ----------------------------------------------------------------------------------------------

JUMPING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

typedef int (*clock_function)(clockid_t, struct timespec *);

// Every two seconds the clock is put to another time, up to days away in either direction.
static const long OFF_SECONDS[] = {0, 3600, -3600, 0, 144000, -144000, 777600};

static int honest(clockid_t clock, struct timespec *now) {
    static clock_function ask;
    if (!ask) ask = (clock_function)dlsym(RTLD_NEXT, "clock_gettime");
    return ask(clock, now);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    struct timespec steady;
    int result = honest(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        honest(CLOCK_MONOTONIC, &steady);
        now->tv_sec += OFF_SECONDS[steady.tv_sec / 2 % 7];
    }
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


def jumping_clock(kind: str) -> Round:
    """The time of day jumps by hours and days, in the driver, its workers and all of Ray.

    Where it is put back while Ray starts, Ray waits for it to come again, and the job gives up: see
    jobs.cluster.START_SECONDS.
    """

    def round(bench: Bench, random: random.Random, number: int) -> Outcome:
        outcome = Outcome()
        job = bench.job(kind)
        if shutil.which("gcc") is None:
            raise NotHereError("needs gcc, for a library that stands before the clock")
        source, library = job.folder / "clock.c", job.folder / "clock.so"
        source.write_text(JUMPING)
        build = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(build, check=True)
        job.environment = {"LD_PRELOAD": str(library)}
        command = job.start()
        code = command.finish(outcome, agents_may_stay=True)
        if not _one_line(code, command.said(), outcome):
            job.environment = {}
            job.to_the_end(outcome)
        bench.compare(job, outcome)
        _no_failures(job, outcome)
        return outcome

    return round
