"""What becomes of a job under faults: a table of events, and what was lost, doubled, torn, or hung.

python -m benchmarks.faults [--rounds N] [--only EVENT] [--seed N]
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import disasters, nodes
from benchmarks.disasters import (
    changed_inputs,
    disk_full,
    jumping_clock,
    read_only,
    refused_gets,
    refused_puts,
)
from benchmarks.disturbed import Bench, Outcome, Round
from benchmarks.kills import kill_decoder, kill_driver, kill_embedder, kill_group, kill_writer

COLUMNS = ("event", "rounds", "lost", "doubled", "torn", "hung", "outcome")


@dataclass(frozen=True)
class Event:
    """A fault.

    expected: what it comes to if all is well.
    share: of the rounds of --rounds; None: it is not a matter of chance, and one round shows it.
    """

    name: str
    round: Round
    expected: str
    share: float | None = None


GOES_ON = "goes on by itself"
RESUMED = "a rerun completes"
ONE_LINE = "one line, exit code 1; a rerun completes"
OR_ONE_LINE = "goes on, or one line, exit code 1; a rerun completes"
EVENTS = [
    Event("SIGKILL to a decode worker", kill_decoder, GOES_ON, 0.2),
    Event("SIGKILL to an embed worker", kill_embedder, GOES_ON, 0.2),
    Event("SIGKILL to the driver", kill_driver, RESUMED, 0.2),
    Event("SIGKILL to driver and process group", kill_group, RESUMED, 0.2),
    Event("SIGKILL in mid-write", kill_writer, "goes on, or a rerun completes", 0.2),
    Event("disk full, embed", disk_full("embed"), ONE_LINE),
    Event("disk full, shard", disk_full("shard"), ONE_LINE),
    Event("output made read-only", read_only("embed"), "one line, exit code 1, twice; a rerun completes"),
    Event("S3: half of the puts 503", refused_puts(503, 2), OR_ONE_LINE),
    Event("S3: half of the puts 500", refused_puts(500, 2), OR_ONE_LINE),
    Event("S3: half of the puts 403", refused_puts(403, 2, "ACCESS_DENIED"), ONE_LINE),
    Event("S3: all puts 503", refused_puts(503, 1, "SLOW_DOWN"), ONE_LINE),
    Event("S3: half of the gets 503", refused_gets(503, 2), OR_ONE_LINE),
    Event("S3: all gets 503", refused_gets(503, 1, "HTTP status 503"), ONE_LINE),
    Event("inputs deleted", changed_inputs(disasters.delete, must_fail=True), "failure rows"),
    Event("inputs truncated", changed_inputs(disasters.truncate, must_fail=True), "rows or failure rows"),
    Event("inputs replaced", changed_inputs(disasters.replace, must_fail=False), "rows or failure rows"),
    Event("clock jumps, embed", jumping_clock("embed"), OR_ONE_LINE, 0.06),
    Event("clock jumps, shard", jumping_clock("shard"), OR_ONE_LINE, 0.06),
]


def run(event: Event, bench: Bench, rounds: int, seed: int) -> Outcome:
    """Some rounds of an event, each told on stderr."""
    total = Outcome()
    for number in range(rounds):
        begun = time.monotonic()
        try:
            outcome = event.round(bench, random.Random(f"{seed} {event.name} {number}"), number)
        except disasters.NotHereError as error:
            return Outcome(skipped=str(error))
        total.add(outcome)
        text = "; ".join([*outcome.notes, *outcome.wrong])
        said = f"{event.name} {number + 1}/{rounds}: {'well' if outcome.well else 'NOT WELL'} ({text})"
        print(f"{said} {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return total


def line(event: Event, rounds: int, outcome: Outcome) -> str:
    """A row of the table."""
    said = "; ".join(dict.fromkeys(outcome.wrong)) or (event.expected if outcome.well else "see counts")
    if outcome.skipped:
        rounds, said = 0, f"skipped: {outcome.skipped}"
    cells = (event.name, rounds, outcome.lost, outcome.doubled, outcome.torn, outcome.hung, said)
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="kills in all, shared among the kinds of them")
    parser.add_argument("--only", metavar="EVENT", help="events whose name has this in it")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    wanted = (asked.only or "").lower()
    events = [event for event in EVENTS if wanted in event.name.lower()]
    lost_nodes = [name for name in nodes.EVENTS if wanted in name.lower()]
    if not events and not lost_nodes:
        names = ", ".join([*(event.name for event in EVENTS), *nodes.EVENTS])
        parser.error(f"--only {asked.only!r}: there are {names}")
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---:|---:|---:|---|"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the jobs
    folder, well = Path(tempfile.mkdtemp(prefix="faults-")), True
    try:
        bench = Bench(folder) if events else None
        for event in events:
            assert bench is not None
            rounds = 1 if event.share is None else max(1, round(asked.rounds * event.share))
            outcome = run(event, bench, rounds, asked.seed)
            lines.append(line(event, rounds, outcome))
            well &= outcome.well
        for name in lost_nodes:  # of a simulated cluster, which benchmarks/nodes.py makes
            tally = nodes.rounds(name, max(1, asked.rounds // 16), folder, asked.seed)
            lines.append(tally.row())
            well &= tally.sound
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(lines))
    sys.exit(not well)


if __name__ == "__main__":
    main()
