"""Video to small clips: what ours costs beside libavcodec alone, and beside what others use.

    python -m benchmarks.decode [--quick] [--json FILE] [--media DIR] [--long-minutes 1.5]

Other libraries take part where they are installed: `pip install decord opencv-python-headless torchcodec`.
Videos are made in the first run and kept in --media. The unit is CPU time of the process that reads, with all
its threads. Contenders take turns at every clip, so that whatever else the machine does hits all alike; of
the rounds the median counts, and ratios are within the run. On a busy machine the least of the rounds says
more, because company on a core only ever costs: what we aim at is given by both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import memory, readers
from benchmarks.contender import Contender
from benchmarks.readers import FRAMES, RATE, SIZE, SPAN, Task
from pipeline.cut import cut

out = Console(width=150)
FLOOR, OURS, REFERENCE = "floor: libavcodec alone", "ours", "reference"
FROM_START, DECORD = "PyAV from the start, RGB", "decord"
LAPS = {"pixels": "ours: pixels", "cut": "ours: + cut", "shard": "ours: + shard"}
PIXELS, ALL_OF_OURS = LAPS["pixels"], LAPS["shard"]
SIZES, CODECS, LONG_CODECS = ("360p", "720p", "1080p"), ("H.264", "HEVC", "VP9", "AV1"), ("H.264", "VP9")
LIMITS = {"H.264": 1.0, "HEVC": 1.0, "VP9": 1.1, "AV1": 1.1}  # ours / floor, at most
LEAST_OVER_START, LEAST_OVER_DECORD = 4.0, 1.3
SHORT_FRAMES = 10 * RATE
# Of the floor and ours, which are close to each other; of the others.
ROUNDS = {"360p": (9, 3), "720p": (7, 2), "1080p": (4, 1)}
ROUNDS_LONG = ROUNDS_QUICK = (3, 1)
PLANS = ("tubevit-b16", "gated-b16", "dense")


@dataclass
class Score:
    """One contender at some tasks: CPU ms of each turn, and how far its pixels are from the reference."""

    turns: dict[Task, list[float]] = field(default_factory=dict)
    psnr_db: float | None = None
    error: str | None = None

    def cpu_ms(self, typical: Callable[[list[float]], float] = statistics.median) -> float | None:
        """A clip's."""
        if self.error or not self.turns:
            return None
        return statistics.mean(typical(ms) / len(task.starts) for task, ms in self.turns.items())


Scores = dict[str, Score]


@dataclass(frozen=True)
class Result:
    """All contenders at one file and one way to read it."""

    size: str
    codec: str
    seconds: float
    whole: bool
    plan: str
    scores: Scores

    @property
    def video(self) -> str:
        plan = "" if self.plan == PLANS[0] else f" {self.plan}"
        return f"{self.size} {self.codec} {self.seconds:.0f} s{plan}"

    def ratio(
        self, name: str, to: str, typical: Callable[[list[float]], float] = statistics.median
    ) -> float | None:
        above, below = (self.scores[n].cpu_ms(typical) if n in self.scores else None for n in (name, to))
        return above / below if above is not None and below else None


def contest(contenders: list[Contender], tasks: list[Task], rounds: int, rounds_of_others: int) -> Scores:
    """All tasks by all contenders, in turns."""
    racing = [c for c in contenders if c.name != REFERENCE]
    scores = {name: Score() for contender in racing for name in _rows(contender)}
    (reference,) = (c for c in contenders if c.name == REFERENCE)
    expected = {task: _checked(reference.ask(task)) for task in tasks}
    for turn in range(rounds):
        if turn == rounds_of_others:
            racing = [c for c in racing if c.name in (FLOOR, OURS)]
        for number, task in enumerate(tasks):
            shift = (turn + number) % len(racing)  # who follows whom changes
            for contender in racing[shift:] + racing[:shift]:
                mine = [scores[name] for name in _rows(contender)]
                if mine[0].error is None:
                    _take_turn(contender, task, mine, expected[task] if turn == 0 else [])
    return scores


def _rows(contender: Contender) -> list[str]:
    return list(LAPS.values()) if contender.name == OURS else [contender.name]


def _take_turn(contender: Contender, task: Task, scores: list[Score], expected: list[np.ndarray]) -> None:
    answer = contender.ask(task)
    if isinstance(answer, str):
        for score in scores:
            score.error = answer
        return
    spent, clips = answer
    for score, ms in zip(scores, np.cumsum(list(spent.values())), strict=True):
        score.turns.setdefault(task, []).append(float(ms))
    if clips and expected:
        worst = min(psnr_db(clip, right, task.plan) for clip, right in zip(clips, expected, strict=True))
        for score in scores:
            score.psnr_db = worst if score.psnr_db is None else min(worst, score.psnr_db)


def _checked(answer: Any) -> list[np.ndarray]:
    if isinstance(answer, str):
        raise SystemExit(f"the reference failed: {answer}")
    return answer[1]


def psnr_db(clip: Any, reference: np.ndarray, plan: str) -> float:
    """Of all pixels, or of those that the plan cuts out where tubes are given."""
    pairs = [(clip, reference)]
    if isinstance(clip, dict):
        tubes = cut(reference, readers.plan_of(plan))
        pairs = [(clip[name], tubes[name]) for name in tubes]
    elif clip.shape != (FRAMES, SIZE, SIZE, 3) or clip.dtype != np.uint8:
        raise SystemExit(f"a clip is {clip.dtype} {clip.shape}")
    error = sum(float(np.square(a.astype(np.int32) - b).sum()) for a, b in pairs)
    return min(100.0, float(10 * np.log10(255**2 * sum(a.size for a, _ in pairs) / max(error, 1e-9))))


def decoding(contenders: list[Contender], arguments: argparse.Namespace) -> Iterator[Result]:
    from benchmarks import media  # imports PyAV: not for every contender's process, which import this module

    long_frames = max(1, round(arguments.long_minutes * 60 * RATE / media.CYCLE_FRAMES)) * media.CYCLE_FRAMES
    videos = [(size, codec, SHORT_FRAMES, PLANS[0]) for size in SIZES for codec in CODECS]
    videos += [("720p", codec, long_frames, PLANS[0]) for codec in LONG_CODECS]
    videos += [("720p", "H.264", SHORT_FRAMES, plan) for plan in PLANS[1:]]
    if arguments.quick:
        videos = [v for v in videos if v[0] == "720p" and v[1] in LONG_CODECS and v[2] == SHORT_FRAMES]
    for size, codec, frames, plan in videos:
        path = media.video(arguments.media, size, codec, frames)
        height = media.HEIGHTS[size]
        task = Task(str(path), height * 16 // 9, height, tuple(range(0, frames - SPAN + 1, SPAN)), True, plan)
        chosen = [c for c in contenders if plan == PLANS[0] or c.name in (FLOOR, OURS, REFERENCE)]
        rounds = ROUNDS_LONG if frames > SHORT_FRAMES else ROUNDS_QUICK if arguments.quick else ROUNDS[size]
        for tasks in (_clips(task, frames, 2 if arguments.quick else 3), [task]):
            begun = time.perf_counter()
            scores = contest(chosen, tasks, *(n * arguments.repeat for n in rounds))
            result = Result(size, codec, frames / RATE, tasks[0].whole, plan, scores)
            print(f"{result.video}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
            yield result


def _clips(task: Task, frames: int, count: int) -> list[Task]:
    """A clip at a random place in each of `count` equal parts of the file."""
    places, share = random.Random(0), (frames - SPAN) / count
    return [replace(task, whole=False, starts=(int((k + places.random()) * share),)) for k in range(count)]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table_of_all(results: list[Result]) -> Table:
    table = Table(
        title="CPU ms a clip of 32 frames, stride 2, to 224x224; PSNR of the worst clip (100: equal)",
        title_justify="left",
    )
    table.add_column("")
    for kind in ("one clip", "all windows"):
        for column in (kind, "x floor", "dB"):
            table.add_column(column, justify="right")
    for one, whole in zip(results[::2], results[1::2], strict=True):
        table.add_section()
        table.add_row(f"[bold]{one.video}[/bold]")
        for name in one.scores:
            cells = [
                cell
                for result in (one, whole)
                for score in [result.scores[name]]
                for cell in (
                    _number(score.cpu_ms(), 1),
                    _number(result.ratio(name, FLOOR), 2),
                    _number(score.psnr_db, 1),
                )
            ]
            table.add_row(name, *cells)
    return table


def table_of_aims(results: list[Result]) -> Table:
    """What of it matters; a star where an aim is missed. Of others, their time over that of our pixels."""
    table = Table(title="ours and its aims: * misses", title_justify="left")
    aims = (f"from start >= {LEAST_OVER_START}", f"decord >= {LEAST_OVER_DECORD}")
    for column in (
        "",
        "read",
        "pixels / floor",
        "of the least",
        "at most",
        "+ cut, shard",
        *aims,
        "best other",
    ):
        table.add_column(column, justify="right" if column else "left", no_wrap=column in ("", "best other"))
    for result in results:
        others = {
            n: r for n in result.scores if (r := result.ratio(n, PIXELS)) and n not in (FLOOR, *LAPS.values())
        }
        best = min(others, key=others.__getitem__, default="")
        ratio, limit = result.ratio(PIXELS, FLOOR), LIMITS[result.codec]
        extra = result.ratio(ALL_OF_OURS, PIXELS)
        start, decord = others.get(FROM_START), others.get(DECORD)
        table.add_row(
            result.video,
            "all windows" if result.whole else "one clip",
            _number(ratio, 3) + ("*" if ratio is None or ratio > limit else ""),
            _number(result.ratio(PIXELS, FLOOR, min), 3),
            _number(limit, 2),
            "-" if extra is None else f"{extra - 1:.1%}" + ("*" if extra > 1.1 else ""),
            _number(start, 2) + ("*" if start and start < LEAST_OVER_START else ""),
            _number(decord, 2) + ("*" if decord and decord < LEAST_OVER_DECORD else ""),
            f"{best} {_number(others.get(best), 2)}",
        )
    return table


def table_of_memory(arguments: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Windows every 10 s over two minutes and over two hours: 320x240 at 200 kb/s."""
    from benchmarks import media

    cycle = media.video(arguments.media, "240p", "H.264", media.CYCLE_FRAMES)
    last = 2 * 3600 // memory.EVERY_SECONDS - memory.WINDOWS_A_PART
    files = {
        "2 minutes, MP4": (media.repeated(cycle, 4, "mp4"), [0]),
        "2 hours, MP4": (media.repeated(cycle, 240, "mp4"), list(range(0, last + 1, memory.WINDOWS_A_PART))),
        "2 hours, MPEG-TS": (media.repeated(cycle, 240, "ts"), [0, last // 2, last]),
    }
    if arguments.quick:
        files.popitem()
    table = Table(title=f"read_clips in parts of {memory.WINDOWS_A_PART} windows", title_justify="left")
    for column in ("", "parts", "clips", "peak MB over start", "CPU s: first part", "middle", "last"):
        table.add_column(column, justify="right" if column else "left")
    found = {name: memory.footprint(path, parts) for name, (path, parts) in files.items()}
    for name, it in found.items():
        seconds = [it.cpu_seconds[i] for i in (0, len(it.cpu_seconds) // 2, -1)]
        table.add_row(
            name, str(len(it.cpu_seconds)), str(it.clips), f"{it.peak_mb:.1f}", *(f"{s:.2f}" for s in seconds)
        )
    return table, {name: asdict(it) for name, it in found.items()}


def record(result: Result) -> list[dict[str, Any]]:
    about = {name: getattr(result, name) for name in ("size", "codec", "seconds", "whole", "plan")}
    return [
        {
            **about, "contender": name, "cpu_ms": score.cpu_ms(), "ratio_to_floor": result.ratio(name, FLOOR),
            "ratio_of_the_least": result.ratio(name, FLOOR, min),
            "psnr_db": score.psnr_db, "error": score.error, "turns_ms": list(score.turns.values()),
        }
        for name, score in result.scores.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="720p H.264 and VP9 only, fewer clips and rounds"
    )
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--media", type=Path, default=Path(tempfile.gettempdir()) / "tubelet-media")
    parser.add_argument("--long-minutes", type=float, default=1.5, help="length of the long files")
    parser.add_argument("--repeat", type=int, default=1, help="times as many rounds")
    arguments = parser.parse_args()
    begun, versions = time.perf_counter(), readers.versions()
    machine = f"{os.cpu_count()} cores, {sys.platform}"
    out.print(f"{time.strftime('%Y-%m-%d')}  Python {platform.python_version()}, {machine}")
    out.print(", ".join(f"{name} {version}" for name, version in versions.items()))
    with tempfile.TemporaryDirectory() as links:
        environment = {"LD_LIBRARY_PATH": readers.library_path(Path(links))}
        contenders = [
            Contender(name, environment if name.startswith("torchcodec") else {}) for name in readers.READERS
        ]
        results = list(decoding(contenders, arguments))
        for contender in contenders:
            contender.stop()
    out.print(table_of_all(results))
    errors = {(name, r.codec): s.error for r in results for name, s in r.scores.items() if s.error}
    for (name, codec), error in errors.items():
        out.print(f"{name}, {codec}: {error[:300]}")
    out.print(table_of_aims(results))
    table, footprints = table_of_memory(arguments)
    out.print(table)
    out.print(f"{time.perf_counter() - begun:.0f} s in all")
    if arguments.json:
        rows = [row for result in results for row in record(result)]
        arguments.json.write_text(
            json.dumps({"versions": versions, "decoding": rows, "memory": footprints}, indent=1)
        )


if __name__ == "__main__":
    main()
