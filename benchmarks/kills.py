"""SIGKILL at random moments: to a decoder, a model, the driver, all of it, and to whoever is writing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import psutil

from benchmarks.disturbed import Bench, Command, Outcome, Round, send

KINDS = ("embed", "shard")
START_SECONDS = 15.0  # a kill before the first commit comes at a random moment of these


def kill_decoder(bench: Bench, random: random.Random, number: int) -> Outcome:
    """The worker that decodes: the units it has begun are counted, as it runs ahead of the model."""
    kind, begun, now = KINDS[number % 2], set[str](), set[str]()
    units = bench.units(kind)
    command, wanted = bench.job(kind).start(), random.randrange(1, units - 3)
    attempts = Path(command.job.output) / "attempts"
    while len(begun) < wanted and not command.over:
        with contextlib.suppress(FileNotFoundError):
            now = {path.name for path in attempts.iterdir() if path.name[0] != "."}
            begun |= now
        if command.job.committed() >= wanted:  # some were too quick to be seen
            break
        time.sleep(0.005)
    killed = _kill(command.workers("Decode" if kind == "embed" else "Shard"))
    note = f"{kind}, {len(begun)} of {units} units seen begun, {len(now)} in hand"
    return (
        _after(bench, command, note, survives=True) if killed else _anew(kill_decoder, bench, random, command)
    )


def kill_embedder(bench: Bench, random: random.Random, number: int) -> Outcome:
    """The worker that holds the model and commits."""
    units = bench.units("embed")
    command = bench.job("embed").start()
    command.reach(random.randrange(units - 3))
    while not (workers := command.workers("Embed")) and not command.over:
        time.sleep(0.05)
    time.sleep(random.uniform(0.0, 0.2))
    note = f"{command.job.committed()} of {units} units committed"
    killed = _kill(workers)
    return (
        _after(bench, command, note, survives=True)
        if killed
        else _anew(kill_embedder, bench, random, command)
    )


def kill_driver(bench: Bench, random: random.Random, number: int) -> Outcome:
    """The driver alone; what it started must notice."""
    command, note = _at_random(bench, random, KINDS[number % 2])
    if command.ended:
        return _anew(kill_driver, bench, random, command)
    command.process.kill()
    return _after(bench, command, note, survives=False)


def kill_group(bench: Bench, random: random.Random, number: int) -> Outcome:
    """The driver and its process group at once, as a terminal's or a supervisor's kill does."""
    command, note = _at_random(bench, random, KINDS[number % 2])
    if command.ended:
        return _anew(kill_group, bench, random, command)
    os.killpg(command.process.pid, signal.SIGKILL)
    return _after(bench, command, note, survives=False)


def kill_writer(bench: Bench, random: random.Random, number: int) -> Outcome:
    """Whoever has a temporary file open. Workers are stopped while it is looked for who that is."""
    kind = KINDS[number % 2]
    units = bench.units(kind)
    command = bench.job(kind).start()
    command.reach(random.randrange(units - 3))
    output, killed = Path(command.job.output), None
    while killed is None and not command.over:
        workers = [w for stage in ("Decode", "Embed", "Shard") for w in command.workers(stage)]
        watched = [*workers, psutil.Process(command.process.pid)]
        until = time.monotonic() + 1.0
        while killed is None and time.monotonic() < until and not command.ended:
            if not _temporary(output):
                time.sleep(0.002)
                continue
            send(watched, signal.SIGSTOP)
            open_now = ((one, path) for one in watched for path in _temporary(output) if _writes(one, path))
            killed = next(open_now, None)
            if killed is not None:
                killed[0].kill()
            send(watched, signal.SIGCONT)
    if killed is None:
        return _anew(kill_writer, bench, random, command)
    driver = killed[0].pid == command.process.pid
    note = f"{kind}, {'driver' if driver else 'worker'} writing to {killed[1].parent.relative_to(output)}/"
    note += f", {command.job.committed()} of {units} units committed"
    return _after(bench, command, note, survives=not driver)


def _at_random(bench: Bench, random: random.Random, kind: str) -> tuple[Command, str]:
    """A run at a random moment: mostly while units are committed, now and then before or after that."""
    units = bench.units(kind)
    command, wanted = bench.job(kind).start(), random.randrange(units + 1)
    command.reach(wanted)
    time.sleep(random.uniform(0.0, 0.2 if wanted else START_SECONDS))
    return command, f"{kind}, {command.job.committed()} of {units} units committed"


def _kill(workers: list[psutil.Process]) -> bool:
    """Kill them; False if there are none any more."""
    alive = [worker for worker in workers if worker.is_running()]
    send(alive, signal.SIGKILL)
    return bool(alive)


def _anew(kill: Round, bench: Bench, random: random.Random, command: Command) -> Outcome:
    """The job was over before the kill: this was no round."""
    outcome = Outcome(notes=["over before the kill, another time"])
    command.finish(outcome)
    outcome.add(kill(bench, random, KINDS.index(command.job.kind)))
    return outcome


def _after(bench: Bench, command: Command, note: str, survives: bool) -> Outcome:
    """The run ends, or is dead and its command given again at once, workers still being about; compare."""
    outcome = Outcome(notes=[note])
    if not survives:
        command.process.wait()
        command.job.to_the_end(outcome)
    code = command.finish(outcome)
    if survives and code != 0:
        said = (command.said().strip().splitlines() or [""])[-1]
        outcome.wrong.append(f"a worker's death ended the job: exit code {code}: {said}")
        command.job.to_the_end(outcome)
    bench.compare(command.job, outcome)
    return outcome


def _temporary(output: Path) -> list[Path]:
    """Files that are being written, but for those that only count attempts."""
    found: list[Path] = []
    for name in (".", "units", "commits", "embeddings", "shards/video", "shards/image"):
        with contextlib.suppress(FileNotFoundError):
            found += [Path(e.path) for e in os.scandir(output / name) if e.name.endswith(".tmp")]
    return found


def _writes(process: psutil.Process, path: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return any(file.path == str(path) for file in process.open_files())
    return False
