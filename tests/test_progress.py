"""Progress: on a terminal a line a stage, elsewhere lines of 80 characters, of training runs of 100."""

from __future__ import annotations

import copy
import io
import pickle
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from jobs import progress
from jobs.progress import Progress, Tally, clock, line, trained_line, view
from pipeline.commits import Receipt
from pipeline.pools import PoolState, Standing

DECODE = PoolState("decode", wanted=6, workers=6, at_work=5, waiting=12, done=1_215)
EMBED = PoolState("embed", wanted=2, workers=2, at_work=2, waiting=9, done=1_204)


NOW = 1000.0


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still."""
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: NOW))


def standing(*pools: PoolState) -> Standing:
    made = Standing()
    made.pools = pools
    return made


def tally_of(*pools: PoolState, units: int = 2_400, before: int = 0, seconds: float = 100.0) -> Tally:
    """So many seconds after the start, with a unit a receipt."""
    tally = Tally(units, before, standing(*pools), begun=NOW - seconds)
    for unit in range(4):
        reasons = {"corrupt": 2, "unreadable": 1} if unit == 3 else {}
        tally.add(Receipt(unit, clips=50, model_seconds=3.0, wait_seconds=1.0, reasons=reasons))
    return tally


def test_a_line_tells_units_speed_queue_busy_share_failures_and_time_left(still: None) -> None:
    told = line(tally_of(DECODE, EMBED))
    assert told == "4/2,400 units  2.0 clips/s  queue 9  model busy 75%  3 failures  16:38:20 left"
    assert len(told) <= 80


def test_a_line_of_one_stage(still: None) -> None:
    tally = tally_of(PoolState("shard", 8, 8, 7, 100, 4), before=2_000)
    for receipt in (receipt for _, receipt in tally.recent):
        receipt.model_seconds = receipt.wait_seconds = 0.0
    assert line(tally) == "2,004/2,400 units  2.0 clips/s  7/8 at work  3 failures  2:45:00 left"


def test_a_line_says_which_workers_are_missing() -> None:
    tally = Tally(10, 0, standing(PoolState("decode", 6, 2, 0, 0, 0), PoolState("embed", 1, 0, 0, 0, 0)))
    told = line(tally)
    assert told == "0/10 units  0.0 clips/s  decode: 2 of 6 workers  embed: 0 of 1 worker"


def test_speed_is_that_of_the_last_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = NOW
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    tally = Tally(10_000, 0, Standing(), begun=NOW)
    for unit in range(100):
        now += 10
        tally.add(Receipt(unit, clips=10 if unit < 50 else 100))
    assert tally.clips_per_second == pytest.approx(10, rel=0.05)
    assert len(tally.recent) <= progress.RECENT_SECONDS / 10 + 1
    assert tally.left_seconds == pytest.approx(1000 / 100 * 9900)


def rendered(tally: Tally, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(view(tally))
    return captured.get().rstrip().splitlines()


def test_a_terminal_shows_a_line_a_stage(still: None) -> None:
    head, decode, embed, total, lost = rendered(tally_of(DECODE, EMBED))
    assert head.split() == ["units", "at", "work", "waiting", "busy"]
    assert decode.split() == ["decode", "1,215/2,400", "5/6"]
    assert embed.split() == ["embed", "1,204/2,400", "2/2", "9", "75%"]
    assert "2.0 clips/s   1:40 gone, 16:38:20 left" in total
    assert lost.strip() == "3 failures: 2 corrupt, 1 unreadable"
    assert max(map(len, (head, decode, embed, total, lost))) <= 80


def test_a_terminal_counts_what_was_done_before(still: None) -> None:
    (_, shard, *_) = rendered(tally_of(PoolState("shard", 4, 3, 3, 7, 5), before=1_000))
    assert shard.split()[:5] == ["shard", "1,005/2,400", "3/3", "of", "4"]


def test_live_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    shown = Progress(Console(file=file, force_terminal=True, width=80))
    state = Standing()
    shown.start(2, 0, state)
    state.pools = (PoolState("shard", 1, 1, 1, 0, 1),)
    shown.advance(Receipt(0, clips=7))
    shown.note("a note that stays")
    shown.advance(Receipt(1, clips=7, reasons={"corrupt": 1}))
    shown.stop()
    said = file.getvalue()
    assert "a note that stays" in said
    assert said.rindex("1 failure: 1 corrupt") > said.index("a note that stays")
    assert shown.notes == ["a note that stays"]


def test_plain_lines_come_by_themselves_when_there_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while no unit is finished, as with large units or workers that start."""
    assert progress.PLAIN_SECONDS == 10.0
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.02)
    file = io.StringIO()
    shown = Progress(Console(file=file, width=200))
    state = standing(PoolState("shard", 2, 0, 0, 0, 0))
    shown.start(2, 0, state)
    time.sleep(0.4)
    state.pools = (PoolState("shard", 2, 2, 2, 0, 0),)
    time.sleep(0.4)
    assert [told.partition("  ")[2] for told in file.getvalue().splitlines()] == [
        "0.0 clips/s  shard: 0 of 2 workers", "0.0 clips/s  2/2 at work",
    ]  # fmt: skip
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 3600)
    shown.advance(Receipt(0, clips=7))
    shown.advance(Receipt(1, clips=7))
    shown.stop()
    assert file.getvalue().splitlines()[-1].startswith("2/2 units  ")


def test_an_interrupt_that_was_swallowed_comes_with_the_next_receipt() -> None:
    shown = Progress(Console(quiet=True))
    shown.start(3, 0)
    with pytest.raises(KeyboardInterrupt):
        shown.interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        shown.advance(Receipt(0))
    shown.stop()


def test_the_standing_of_a_run_stays_the_same_object_where_settings_are_copied() -> None:
    state = standing(DECODE)
    assert copy.deepcopy({"a": [state]})["a"][0] is state
    assert pickle.loads(pickle.dumps(state)).pools == (DECODE,)


ROW = {
    "step": 1_200, "loss": 2.34567, "accuracy/clips": 0.4123, "gradient": 1.234, "clips_per_second": 312.44,
    "waited": 0.021, "rate": 1.234e-4, "gpu_bytes": 12_345_678_901,
}  # fmt: skip


def test_a_line_of_a_training_run_is_readable() -> None:
    assert trained_line(ROW, 20_000) == (
        "step 1,200/20,000  loss 2.346  accuracy clips 41.2%  rate 0.00012  312.4 clips/s  waited 2%"
    )
    short = {name: value for name, value in ROW.items() if not name.startswith("accuracy")}
    assert trained_line(short, 20_000).endswith("waited 2%  gradient 1.234")
    assert "  accuracy clips 41.2%  2,000 clips failed  rate " in trained_line(
        {**ROW, "failed": 2_000}, 20_000
    )
    assert trained_line({**ROW, "failed": 0}, 20_000) == trained_line(ROW, 20_000)
    assert trained_line({"step": 200, "accuracy/clips (test)": 0.5}, 20_000) == (
        "step 200/20,000  accuracy clips (test) 50.0%"
    )


def test_a_line_of_a_training_run_fits_whatever_is_measured() -> None:
    many = {f"accuracy/dataset number {n}": 0.1 * n for n in range(9)}
    more = {f"another measure {n}": 0.5 for n in range(9)}
    told = trained_line({**ROW, **many, **more, "step": 1_999_980}, 2_000_000)
    assert told.endswith("mean accuracy 40.1%  rate 0.00012  312.4 clips/s  waited 2%")
    assert len(told) <= 100
    assert len(trained_line({**ROW, "accuracy/" + 90 * "x": 0.5}, 20_000)) <= 100


def test_times() -> None:
    assert [clock(seconds) for seconds in (0, 7.4, 760, 3599.6, 90_061)] == [
        "0:00", "0:07", "12:40", "1:00:00", "25:01:01",
    ]  # fmt: skip
