"""What a run tells people while it goes: on a terminal live, stage by stage; elsewhere a line at times."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Event, Thread

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.words import counted
from pipeline.commits import Receipt
from pipeline.pools import Standing

PLAIN_SECONDS = 10.0  # between two lines where the output is no terminal
RECENT_SECONDS = 300.0  # of which speeds are told
REFRESHES = 2  # a second, of what is live
BAR_WIDTH = 32
LINE = 100  # characters of a line of a training run
NAMED = 2  # datasets whose accuracy is told; of more the mean
FORMS = {"rate": "rate {:.2g}", "clips_per_second": "{:.1f} clips/s", "waited": "waited {:.0%}"}


@dataclass
class Tally:
    """What a call has done so far: counted from its units' receipts, told for the last few minutes."""

    units: int
    done: int  # by earlier calls as well
    standing: Standing
    begun: float = field(default_factory=time.monotonic)
    new: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    recent: deque[tuple[float, Receipt]] = field(default_factory=deque)

    def add(self, receipt: Receipt) -> None:
        now = time.monotonic()
        self.done += 1
        self.new += 1
        self.reasons.update(receipt.reasons)
        self.recent.append((now, receipt))
        while self.recent[0][0] < now - RECENT_SECONDS:
            self.recent.popleft()

    @property
    def elapsed_seconds(self) -> float:
        return max(time.monotonic() - self.begun, 1e-9)

    @property
    def clips_per_second(self) -> float:
        clips = sum(receipt.clips for receipt in self._recent())
        return clips / min(self.elapsed_seconds, RECENT_SECONDS)

    @property
    def busy(self) -> float | None:
        """The share of its workers' time that the model took; None where there is no model."""
        recent = self._recent()
        model = sum(receipt.model_seconds for receipt in recent)
        wait = sum(receipt.wait_seconds for receipt in recent)
        return model / (model + wait) if model else None

    @property
    def left_seconds(self) -> float | None:
        """None if nothing can be said yet."""
        return self.elapsed_seconds * (self.units - self.done) / self.new if self.new else None

    def _recent(self) -> list[Receipt]:
        return [receipt for _, receipt in self.recent.copy()]  # which the main thread goes on with


class Progress:
    """Live progress: a line a stage on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console):
        self.console = console
        self.notes: list[str] = []
        self.interrupted: int | None = None  # by this signal
        self._live: Live | None = None
        self._stopped = Event()

    def interrupt(self, number: int, *_: object) -> None:
        """Handler of a signal: stop now, or at the next sign of progress if a library swallows it here."""
        self.interrupted = number
        raise KeyboardInterrupt

    def note(self, text: str, style: str = "") -> None:
        """A line that also goes into the report."""
        self.notes.append(text)
        self.console.print(text, style=style, highlight=False, markup=False)

    def status(self, text: str) -> None:
        """What is being done now, if nothing is shown yet."""
        self.console.print(text, style="dim", highlight=False)

    def _heed_interrupt(self) -> None:
        if self.interrupted is not None:
            raise KeyboardInterrupt

    def start(self, units: int, done_units: int, standing: Standing | None = None) -> None:
        """Units of the job, and how many were done before; `standing` is kept up to date by others."""
        self._heed_interrupt()
        tally = self._tally = Tally(units, done_units, standing or Standing())
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=lambda: view(tally), console=self.console, refresh_per_second=REFRESHES
            )
            self._live.start()
            return
        self._stopped = stopped = Event()
        Thread(target=self._tell, args=(tally, stopped), daemon=True).start()

    def advance(self, receipt: Receipt) -> None:
        self._heed_interrupt()
        self._tally.add(receipt)
        if self._live is None and self._tally.done == self._tally.units:
            self._stopped.set()
            self._say(self._tally)

    def _tell(self, tally: Tally, stopped: Event) -> None:
        told: object = None
        while not stopped.wait(PLAIN_SECONDS):
            now = (tally.done, tally.standing.pools)
            if now != told:
                self._say(tally)
            told = now

    def _say(self, tally: Tally) -> None:
        self.console.print(line(tally), highlight=False, markup=False, soft_wrap=True)

    def trained(self, row: Mapping[str, float | int | str], steps: int) -> None:
        """A row of a training run's metrics."""
        self.console.print(trained_line(row, steps), highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        self._stopped.set()
        if self._live is not None:
            self._live.stop()
            self._live = None


def line(tally: Tally) -> str:
    """All of it in one line, of 80 characters if it can be."""
    said = [f"{tally.done:,}/{tally.units:,} units", f"{tally.clips_per_second:.1f} clips/s"]
    pools = tally.standing.pools
    if missing := [pool for pool in pools if pool.workers < pool.wanted]:
        said += [f"{pool.stage}: {pool.workers} of {counted(pool.wanted, 'worker')}" for pool in missing]
    elif len(pools) > 1:
        said.append(f"queue {sum(pool.waiting for pool in pools[1:]):,}")
    elif pools:
        said.append(f"{pools[0].at_work}/{pools[0].workers} at work")
    if (busy := tally.busy) is not None:
        said.append(f"model busy {busy:.0%}")
    if tally.reasons:
        said.append(counted(tally.reasons.total(), "failure"))
    if tally.left_seconds:
        said.append(f"{clock(tally.left_seconds)} left")
    return "  ".join(said)


def view(tally: Tally) -> Group:
    """A line a stage, and what there is in all."""
    stages = Table.grid(padding=(0, 3))
    stages.add_column()
    for _ in range(4):
        stages.add_column(justify="right", no_wrap=True)
    stages.add_row(*(Text(name, style="dim") for name in ("", "units", "at work", "waiting", "busy")))
    for number, pool in enumerate(tally.standing.pools):
        done = f"{tally.done - tally.new + pool.done:,}/{tally.units:,}"
        missing = f" of {pool.wanted}" if pool.workers < pool.wanted else ""
        # What waits for the first stage is the rest of the plan.
        waiting = f"{pool.waiting:,}" if number else ""
        model = tally.busy if number == len(tally.standing.pools) - 1 else None
        busy = "" if model is None else f"{model:.0%}"
        stages.add_row(pool.stage, done, f"{pool.at_work}/{pool.workers}{missing}", waiting, busy)
    if not tally.standing.pools:
        stages.add_row(Text("workers are starting ...", style="dim"))
    left = "" if not tally.left_seconds else f", {clock(tally.left_seconds)} left"
    total = Table.grid(padding=(0, 3))
    total.add_row(
        ProgressBar(total=max(1, tally.units), completed=tally.done, width=BAR_WIDTH),
        f"{tally.clips_per_second:.1f} clips/s",
        f"{clock(tally.elapsed_seconds)} gone{left}",
    )
    if not tally.reasons:
        return Group(stages, total)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in tally.reasons.most_common())
    lost = Text(f"{counted(tally.reasons.total(), 'failure')}: {reasons}", style="yellow")
    return Group(stages, total, lost)


def trained_line(row: Mapping[str, float | int | str], steps: int) -> str:
    """What a training run has measured, in LINE characters: what matters, then what of the rest fits."""
    told = f"step {row['step']:,}/{steps:,}"
    for text in _measures(row):
        if len(told) + 2 + len(text) <= LINE:
            told += f"  {text}"
    return told


def _measures(row: Mapping[str, float | int | str]) -> Iterator[str]:
    """The most important first."""
    if "loss" in row:
        yield f"loss {row['loss']:.4g}"
    accuracies = {name.partition("/")[2]: float(x) for name, x in row.items() if name.startswith("accuracy/")}
    if len(accuracies) > NAMED:
        yield f"mean accuracy {sum(accuracies.values()) / len(accuracies):.1%}"
    elif accuracies:
        yield "accuracy " + ", ".join(f"{name} {share:.1%}" for name, share in accuracies.items())
    if row.get("failed"):
        yield f"{counted(int(row['failed']), 'clip')} failed"
    for name, form in FORMS.items():
        if name in row:
            yield form.format(row[name])
    for name, value in row.items():
        if name not in {"step", "loss", "failed", *FORMS} and not name.startswith("accuracy/"):
            yield f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value:,}"


def clock(seconds: float) -> str:
    """Such as 0:07, 12:40, 1:02:40."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
