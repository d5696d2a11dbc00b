"""Can a damaged file stop a job, vanish from it, or be counted twice? Mutated clips through one shard job.

    python -m benchmarks.fuzz [--mutations 2000] [--seed 0] [--keep DIR] [--json FILE]
    python -m benchmarks.fuzz --make NAME [--seed 0] [--keep DIR]    one of them, and what reading it gives

Sources are the generated clips of the tests and, where it is, the folder of real ones beside the project.
Each mutation is first read alone, in a process that is watched; then one job gets all of them, and the
generated clips, unharmed, among them. Exit code 1: something that must hold does not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.mutations import kind_of, make, names, sources
from benchmarks.watched import Alone, Job, read_alone, read_table, run_job
from pipeline.errors import SpecError
from pipeline.verify import verify

out = Console()
RSS_BYTES = 600 << 20  # of a decoder; Python and its libraries are about a third of it


@dataclass
class Account:
    """Every input, by what became of it."""

    rows: Counter[str]
    failures: Counter[str]
    reasons: Counter[str]
    deadly: list[str]  # inputs that failed because their decoder died or hung
    doubled: int
    problems: list[str]


def account(output: Path) -> Account:
    rows: Counter[str] = Counter()
    ids: Counter[str] = Counter()
    for path in (output / "shards").rglob("*.arrow"):
        table = pa.ipc.open_file(str(path)).read_all()
        rows.update(table["uri"].to_pylist())
        ids.update(table["clip_id"].to_pylist())
    failures = read_table(output / "failures", ["uri", "reason"])
    try:
        problems = verify(str(output)).problems
    except SpecError as error:
        problems = [str(error)]
    return Account(
        rows,
        Counter(row["uri"] for row in failures),
        Counter(row["reason"] for row in failures),
        sorted({row["uri"] for row in failures if row["reason"] in {"crashed", "timeout"}}),
        sum(count - 1 for count in ids.values()),
        problems,
    )


@dataclass
class Fuzzed:
    """A whole run, and all that is wrong with it."""

    inputs: list[str]
    alone: dict[str, Alone]
    job: Job
    account: Account
    broken: list[str] = field(default_factory=list)

    def fate(self, name: str) -> str:
        rows, failed = self.account.rows[name] > 0, self.account.failures[name] > 0
        return "both" if rows and failed else "rows" if rows else "failures" if failed else "lost"

    def check(self) -> None:
        """What must hold, whatever the files are."""
        given = self.account.rows.keys() | self.account.failures.keys()
        intact = [n for n in self.inputs if kind_of(n) == "intact" and self.fate(n) != "rows"]
        heavy = [n for n, one in self.alone.items() if one.peak_bytes > RSS_BYTES]
        job, troubled = self.job, [f"{n} ({one.trouble})" for n, one in self.alone.items() if one.trouble]
        followed = [n for n in self.inputs if kind_of(n) == "text" and self.fate(n) != "failures"]
        for what, wrong in (
            ("lost", [n for n in self.inputs if self.fate(n) == "lost"]),
            ("inputs that were not there", sorted(given - set(self.inputs))),
            ("doubled clip ids", self.account.doubled),
            ("problems found by verify", self.account.problems),
            ("exit code of the job", job.exit_code),
            (f"job ended by its bound of {job.bound_seconds:g} s", job.exit_code is None),
            ("sound files harmed by their neighbours", intact),
            ("texts taken for a video", followed),
            ("read alone: crashed, hung, or raised what is no MediaError", troubled),
            (f"read alone: more than {RSS_BYTES >> 20} MB", heavy),
            (f"workers of more than {RSS_BYTES >> 20} MB", job.peak_bytes > RSS_BYTES),
            ("units begun again, because their worker died", job.begun_again),
            ("inputs that took their worker down", sorted({*job.deaths, *self.account.deadly})),
        ):
            if isinstance(wrong, list) and wrong:
                more = f" and {len(wrong) - 20} more" if len(wrong) > 20 else ""
                self.broken.append(f"{what}: {', '.join(wrong[:20])}{more}")
            elif wrong:
                self.broken.append(f"{what}: {wrong}")


def fuzz(
    count: int, seed: int, folder: Path, real: bool = True, bound_seconds: float | None = None
) -> Fuzzed:
    """Make the mutations in `folder`, read each alone, run the job, and account for every one.

    Args:
        bound_seconds: for the job; by default two minutes and one second an input.
    """
    files, corpus = sources(real), folder / "corpus"
    corpus.mkdir(parents=True)
    sound = sources(real=False)
    for name, data in sound.items():
        (corpus / name).write_bytes(data)
    mutated = list(names(files, count, seed))
    for name in mutated:
        make(name, files, seed, corpus)
    inputs = sorted([*sound, *mutated])
    alone = {one.name: one for one in read_alone(corpus, inputs, folder / "stacks.txt")}
    job = run_job(corpus, folder / "run", bound_seconds or 120 + len(inputs), folder / "job.log")
    fuzzed = Fuzzed(inputs, alone, job, account(folder / "run"))
    fuzzed.check()
    return fuzzed


def show(fuzzed: Fuzzed) -> None:
    job, fates = fuzzed.job, ("rows", "both", "failures", "lost")
    table = Table(title=f"one shard job over {len(fuzzed.inputs)} files", title_justify="left")
    for column in ("", "inputs", "rows only", "rows + failures", "failures only", "lost", "slowest alone, s"):
        table.add_column(column, justify="right" if column else "left")
    by_kind: dict[str, list[str]] = {}
    for name in fuzzed.inputs:
        by_kind.setdefault(kind_of(name), []).append(name)
    for kind, members in [*sorted(by_kind.items()), ("all", fuzzed.inputs)]:
        counts = Counter(map(fuzzed.fate, members))
        slowest = max(fuzzed.alone[name].seconds for name in members)
        if kind == "all":
            table.add_section()
        table.add_row(kind, *map(str, [len(members), *(counts[f] for f in fates)]), f"{slowest:.2f}")
    table.add_section()
    reasons = ", ".join(f"{count} {reason}" for reason, count in fuzzed.account.reasons.most_common())
    heaviest = max(fuzzed.alone.values(), key=lambda one: one.peak_bytes)
    slowest_first = sorted(fuzzed.alone.values(), key=lambda one: -one.seconds)[:3]
    for what, said in (
        ("failures", reasons or "none"),
        ("clips", f"{fuzzed.account.rows.total()}, {fuzzed.account.doubled} doubled"),
        ("job", f"exit code {job.exit_code} after {job.seconds:.0f} s (bound {job.bound_seconds:.0f} s)"),
        ("units begun again", f"{job.begun_again}, of deadly inputs: {', '.join(job.deaths) or 'none'}"),
        ("workers", f"at most {_mb(job.peak_bytes)} each (bound {_mb(RSS_BYTES)})"),
        ("heaviest alone", f"{_mb(heaviest.peak_bytes)}, {heaviest.name}"),
        ("slowest alone", ", ".join(f"{one.name} {one.seconds:.1f} s" for one in slowest_first)),
    ):
        table.caption = f"{table.caption}\n{what}: {said}" if table.caption else f"{what}: {said}"
    table.caption_justify = "left"
    out.print(table)
    for line in fuzzed.broken:
        out.print(f"[bold red]broken[/] {escape(line)}", highlight=False, soft_wrap=True)
    for one in fuzzed.alone.values():
        if one.trouble:
            out.print(escape(f"{one.name}: {one.trouble}\n{one.stack}"), highlight=False, soft_wrap=True)
    out.print("all that must hold does" if not fuzzed.broken else "")


def _mb(size: int) -> str:
    return f"{size >> 20} MB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for the mutated files and the run")
    parser.add_argument("--json", type=Path, help="a file for all that was found")
    parser.add_argument("--make", metavar="NAME", help="make and read one mutation")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = arguments.keep or Path(temporary) / "fuzz"
        if arguments.make:
            folder.mkdir(parents=True, exist_ok=True)
            make(arguments.make, sources(), arguments.seed, folder)
            for one in read_alone(folder, [arguments.make], Path(temporary) / "stacks.txt"):
                out.print(one)
                out.print(escape(one.stack), highlight=False, soft_wrap=True)
            return 0
        fuzzed = fuzz(arguments.mutations, arguments.seed, folder)
    show(fuzzed)
    if arguments.json:
        arguments.json.write_text(json.dumps(fuzzed, default=vars, indent=1))
    return 1 if fuzzed.broken else 0


if __name__ == "__main__":
    sys.exit(main())
