"""What becomes of a job when a node of its cluster is lost: simulated nodes, removed the hard way.

    python -m benchmarks.nodes [--rounds 5] [--seed 0] [--inputs 96]

Each round starts a head, two decode nodes and an embed node, runs an embed job on them, and takes a node away
at a random moment while units are being worked on. A job that fails must say so in one line within the time
stated, and the same command must then complete on a sound machine. Exit code 1: something that must hold
does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from benchmarks.media import many
from jobs.progress import Progress
from jobs.runner import run_job
from jobs.spec import load
from pipeline.commits import Receipt
from pipeline.errors import SpecError
from pipeline.verify import verify

ROOT = Path(__file__).parent.parent
TIMEOUT_SECONDS = 20.0  # limits.timeout_seconds of these jobs
WAIT_SECONDS = {True: 90.0, False: 30.0}  # ray.wait_seconds of these jobs, by whether the node is replaced
DEADLINE_SECONDS = 280.0  # of a round; one that is not over by then hangs
EVENTS = {
    "decode node lost, replaced": ("decode", True),
    "decode node lost": ("decode", False),
    "embed node lost, replaced": ("embed", True),
    "embed node lost": ("embed", False),
}
HEADER = "| event | rounds | lost | doubled | torn | hung | outcome |\n|---|---:|---:|---:|---:|---:|---|"

# What a decode and an embed node have: there is more room for decoders than one node of the two can hold.
NODES: dict[str, dict[str, float]] = {"decode": {"num_cpus": 2}, "embed": {"num_cpus": 0, "num_gpus": 1}}


@dataclass
class Lossy:
    """One round: how the job ended, and when a node was taken away."""

    seconds: float  # from the loss to the job's end
    at_unit: int
    error: str | None = None  # None: the job completed


@dataclass
class Tally:
    """All rounds of one event."""

    event: str
    rounds: int = 0
    lost: int = 0  # clips that an undisturbed run has and this one has not
    doubled: int = 0
    torn: int = 0  # clips with another embedding, and what `verify` finds
    hung: int = 0
    completed: int = 0
    failed: int = 0
    seconds: float = 0.0  # the longest from the loss to an error
    errors: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        return not (self.lost or self.doubled or self.torn or self.hung)

    def row(self) -> str:
        """A row of the table of `HEADER`."""
        outcome = f"{self.completed} completed"
        if self.failed:
            outcome += (
                f", {self.failed} failed with one clear line within {self.seconds:.0f} s; a rerun completed"
            )
        numbers = (self.rounds, self.lost, self.doubled, self.torn, self.hung)
        return f"| {self.event} | {' | '.join(map(str, numbers))} | {outcome} |"


def make_corpus(folder: Path, inputs: int) -> Path:
    """One short video under many names."""
    across, down = np.meshgrid(np.arange(640), np.arange(360))
    waves = (np.stack([across + 3 * n, down + 5 * n, across + down], axis=-1) % 256 for n in range(100))
    many(folder, "", inputs, np.stack([wave.astype(np.uint8) for wave in waves]), {"b": "2000k", "g": "12"})
    return folder


def job_spec(corpus: Path, output: Path) -> dict[str, Any]:
    """An embed job of many small units."""
    return {
        "version": 1, "kind": "embed", "input": {"path": str(corpus)},
        "output": {"path": str(output), "unit_bytes": 212_000},  # a video of 4 clips
        "sampling": {"frames": 20, "stride": 2, "clips": 4, "height_px": 64, "width_px": 96},
        "model": {"name": "tubevit-tiny", "batch_views": 4}, "limits": {"timeout_seconds": TIMEOUT_SECONDS},
    }  # fmt: skip


class Saboteur(Progress):
    """Takes a node of the cluster away when so many units are committed."""

    def __init__(
        self, cluster: Any, node: Any, at_unit: int, wait_seconds: float, replacement: dict[str, Any] | None
    ):
        super().__init__(Console(stderr=True))
        self._cluster, self._node, self._replacement = cluster, node, replacement
        self._at, self._wait_seconds = at_unit, wait_seconds
        self.removed_at: float | None = None
        self.units = 0

    def advance(self, receipt: Receipt) -> None:
        super().advance(receipt)
        self.units += 1
        if self.removed_at is None and self.units >= self._at:
            time.sleep(self._wait_seconds)
            self.removed_at = time.monotonic()
            self._cluster.remove_node(self._node, allow_graceful=False)
            if self._replacement is not None:
                self._cluster.add_node(**self._replacement)


def lose_node(spec: dict[str, Any], which: str, replaced: bool, rng: random.Random) -> Lossy:
    """Run a job on a cluster of its own, in this process's main thread, and take a node away from it."""
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 150 << 20}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store}
    )
    try:
        decode = [cluster.add_node(**NODES["decode"], **store) for _ in range(2)]
        embed = cluster.add_node(**NODES["embed"], **store)
        node = rng.choice(decode) if which == "decode" else embed
        replacement = {**NODES[which], **store} if replaced else None
        # Early enough that work is left; and not only just when a unit was committed.
        inputs = sum(1 for _ in Path(spec["input"]["path"]).iterdir())
        at_unit, wait_seconds = rng.randint(1, inputs // 3), rng.random() / 2
        saboteur = Saboteur(cluster, node, at_unit, wait_seconds, replacement)
        error = None
        try:
            run_job(
                load({**spec, "ray": {"address": cluster.address, "wait_seconds": WAIT_SECONDS[replaced]}}),
                saboteur,
            )
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        assert saboteur.removed_at is not None, error
        return Lossy(time.monotonic() - saboteur.removed_at, at_unit, error)
    finally:
        cluster.shutdown()


def one_round(spec: dict[str, Any], which: str, replaced: bool, seed: int) -> Lossy | None:
    """`lose_node` in a process of its own, with a Ray of its own; None if it hangs."""
    with tempfile.TemporaryDirectory(prefix="tubelet-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_BACKEND_LOG_LEVEL": "fatal",
        }  # fmt: skip
        (Path(folder) / "ray").mkdir()
        result = Path(folder) / "result.json"
        job = json.dumps([spec, which, replaced, seed, str(result)])
        log = Path(spec["output"]["path"] + ".log")
        with log.open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.nodes", "--job", job],
                cwd=ROOT, env=environment, start_new_session=True, stdout=said, stderr=said,
            )  # fmt: skip
        try:
            process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process, folder)
        assert result.exists(), f"{log}: {log.read_text()[-2000:]}"
        return Lossy(**json.loads(result.read_text()))


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    """End a process of ours, and the Ray that it started, which alone knows this folder."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if other.environ().get("RAY_TMPDIR") == folder:
                other.kill()


def finish(spec: dict[str, Any]) -> None:
    """The same command again, on this machine.

    With one thread, as the cluster's models have: with two, sums are rounded otherwise in their last bits.
    """
    here = {**spec, "resources": {"embed": {"cpus": 1.0}}}
    run_job(load(here), Progress(Console(quiet=True)))


def rounds(event: str, count: int, folder: Path, seed: int = 0, inputs: int = 96) -> Tally:
    """`count` rounds of an event of `EVENTS`, each compared with an undisturbed run.

    Args:
        folder: where the corpus, the outputs and the reference are put; the last two are used again.
    """
    corpus, reference = folder / f"corpus-{inputs}", folder / f"reference-{inputs}"
    if not corpus.exists():
        make_corpus(corpus, inputs)
    finish(job_spec(corpus, reference))
    which, replaced = EVENTS[event]
    tally = Tally(event)
    for number in range(count):
        output = folder / f"{event.replace(', ', ' ').replace(' ', '-')}-{seed + number}"
        spec = job_spec(corpus, output)
        tally.rounds += 1
        lossy = one_round(spec, which, replaced, seed + number)
        if lossy is None:
            tally.hung += 1
            continue
        if lossy.error is None:
            tally.completed += 1
        else:
            tally.failed += 1
            tally.seconds = max(tally.seconds, lossy.seconds)
            tally.errors = (*tally.errors, lossy.error)
            finish(spec)
        _compare(output, reference, tally)
    return tally


def _compare(output: Path, reference: Path, tally: Tally) -> None:
    """Count what differs from an undisturbed run."""
    there, here = (pq.read_table(path / "embeddings") for path in (reference, output))
    wanted = dict(zip(there["clip_id"].to_pylist(), there["embedding"].to_pylist(), strict=True))
    ids = here["clip_id"].to_pylist()
    found = dict(zip(ids, here["embedding"].to_pylist(), strict=True))
    tally.lost += len(wanted.keys() - found.keys())
    tally.doubled += len(ids) - len(found)
    tally.torn += sum(found[name] != wanted.get(name) for name in found)
    try:
        tally.torn += len(verify(str(output)).problems)
    except SpecError:
        tally.torn += 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=96)
    parser.add_argument("--event", choices=EVENTS, action="append", help="only this one; repeatable")
    parser.add_argument("--keep", type=Path, help="a folder for what the runs write")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job is not None:
        spec, which, replaced, seed, result = json.loads(asked.job)
        lossy = lose_node(spec, which, replaced, random.Random(seed))
        Path(result).write_text(json.dumps(asdict(lossy)))
        return
    out = Console()
    tallies = []
    with tempfile.TemporaryDirectory() as temporary:
        for event in asked.event or EVENTS:
            tallies.append(
                rounds(event, asked.rounds, asked.keep or Path(temporary), asked.seed, asked.inputs)
            )
            for error in tallies[-1].errors:
                out.print(Text(f"{event}: {error}"), style="dim")
    out.print(Text("\n".join([HEADER, *(tally.row() for tally in tallies)])), soft_wrap=True)
    sys.exit(not all(tally.sound for tally in tallies))


if __name__ == "__main__":
    main()
