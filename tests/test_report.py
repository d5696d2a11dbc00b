"""report.json and report.html: what is of the folder, what of a call; a page is one harmless file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jobs.report import FILE, Report, grouped
from jobs.report_page import page
from jobs.thumbnails import MOST, Thumbnail
from jobs.timeline import Timeline
from jobs.words import counted, duration, size
from pipeline.commits import Receipt, Work
from pipeline.errors import Failure
from pipeline.shards import FAILURES, failure_table
from pipeline.storage import locate

EVIL = '<script>alert("1")</script>&\'"><img src=http://x/y.png>'
START = 1.7e9


def receipts(units: int, decoders: int = 3, *, since: float = 0.0) -> list[Receipt]:
    """Units of ten seconds of video: two seconds of decoding, and half a second on half a GPU."""
    made = []
    for unit in range(units):
        begun = START + since + 2.0 * (unit // decoders)
        decode = Work("decode", f"host-{unit % decoders % 7}:{unit % decoders}", begun, begun + 2, 100 + unit)
        embed = Work("embed", f"gpu:{unit % decoders}", begun + 2, begun + 2.5, 1000)
        made.append(
            Receipt(
                unit, inputs=1, clips=4, frames=100, video_seconds=10.0, tube_bytes=50, decode_seconds=2.0,
                decode_cpu_seconds=1.6, model_seconds=0.5, wait_seconds=1.5, gpu_seconds=0.25,
                work=[decode, embed],
            )
        )  # fmt: skip
    return made


def report_of(made: list[Receipt], new: list[Receipt], wall_seconds: float = 20.0) -> Report:
    clips = sum(receipt.clips for receipt in made)
    report = Report(
        "embed", "tubevit-tiny", "/out", len(made), len(made), "videos and images", 0, clips, 0, {}, 10, 1,
        wall_seconds=wall_seconds,
    )  # fmt: skip
    report.add(made, new)
    return report


def test_what_is_of_the_folder_and_what_is_of_the_call(tmp_path: Path) -> None:
    """Of twelve units this call made the last six, two days after the others."""
    made = receipts(6) + [replace(one, unit=one.unit + 6) for one in receipts(6, since=2 * 86_400)]
    report_of(made, made[6:]).write(locate(str(tmp_path)))
    found = json.loads((tmp_path / FILE).read_text())
    assert found["format"] == 2
    assert (found["units"], found["clips"], found["frames"], found["tube_bytes"]) == (12, 48, 1200, 600)
    assert (found["decode_seconds"], found["model_seconds"], found["gpu_seconds"]) == (24, 6, 3)
    assert found["frames_per_second_per_core"] == pytest.approx(100 / 1.6)
    assert found["split"] == pytest.approx({"decode": 2 / 4, "model": 0.5 / 4, "wait": 1.5 / 4})
    assert found["peak_memory_bytes"] == {"decode": 105, "embed": 1000}
    assert (found["new_units"], found["new_clips"], found["new_video_seconds"]) == (6, 24, 60)
    assert found["clips_per_second"] == pytest.approx(24 / 20)
    assert found["video_hours_per_wall_hour"] == pytest.approx(60 / 20)
    assert found["workers"] == {"decode": 3, "embed": 3}
    assert found["tail_seconds"] == pytest.approx(0.5, abs=1e-3)


def test_a_call_with_nothing_to_do_leaves_the_report_of_the_one_before(tmp_path: Path) -> None:
    place, made = locate(str(tmp_path)), receipts(6)
    assert not report_of(made, []).told(place)
    report_of(made, made).write(place)
    assert report_of(made, [], 0.0).told(place)
    assert not report_of(made, made[5:]).told(place)
    assert not report_of(made[:5], [], 0.0).told(place)  # a unit became void
    old = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**old, "format": 1}))
    assert not report_of(made, [], 0.0).told(place)
    (tmp_path / FILE).write_text("{")
    assert not report_of(made, [], 0.0).told(place)


def test_a_report_of_records_without_times() -> None:
    old = [Receipt(unit, clips=2, decode_seconds=3.0, model_seconds=1.0) for unit in range(3)]
    found = report_of(old, []).values()
    assert found["split"] == {"decode": 0.75, "model": 0.25, "wait": 0.0}
    assert found["frames_per_second_per_core"] is None
    assert (found["tail_seconds"], found["workers"], found["peak_memory_bytes"]) == (0, {}, {})
    assert "Clips a second" not in page(
        report_of(old, []), Timeline.of(old), FAILURES.empty_table(), [], "a: 1"
    )


class Page(HTMLParser):
    """The tags of a page, whether they are closed, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def failures(count: int) -> list[Failure]:
    lost = [Failure(f"{EVIL}{n}.mp4", "decode", "corrupt", EVIL, n / 2, rows=n % 2) for n in range(count)]
    return [*lost, Failure("x.mp4", "open", "unreadable", "no such file")]


def test_the_page_is_one_file_in_which_nothing_runs_or_loads() -> None:
    """Whatever inputs, workers, messages and the spec are called."""
    made = receipts(6)
    for receipt in made:
        receipt.work[1] = replace(receipt.work[1], worker=f"{EVIL}:7")
    report = report_of(made, made)
    report.output, report.notes = f"/out/{EVIL}", [EVIL]
    samples = [Thumbnail(f"a/{EVIL}.mp4", 1.5, (EVIL,), b"\xff\xd8jpeg")]
    text = page(report, Timeline.of(made), failure_table(failures(5), 0), samples, f"input: {EVIL}")
    found = Page(text)
    assert not found.open
    assert {tag for tag, _ in found.tags} <= set(
        "html head meta title style body h1 h2 div span b i small code pre ul li svg g rect path figure"
        " figcaption img".split()
    )
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes), attributes
        assert tag != "img" or attributes["src"] == "data:image/jpeg;base64,/9hqcGVn"
        assert "href" not in attributes
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert found.text.count(EVIL) >= 8  # in words it says what it was told
    for words in ("corrupt decode, 5 inputs, 3 of them gave nothing", "at 0.50 s", "tubelet failures /out/"):
        assert words in found.text


def test_the_page_of_a_large_run_stays_small() -> None:
    """Ten thousand units of a hundred workers, a thousand failures, all the pictures there may be."""
    made = receipts(10_000, decoders=100)
    samples = [Thumbnail(f"{n}.mp4", 1.0, (), bytes(6000)) for n in range(MOST)]
    lost = failure_table(failures(1000), 0)
    text = page(report_of(made, made), Timeline.of(made), lost, samples, "version: 1")
    assert len(text) < 300_000
    lanes = re.findall(r'<div class="lane"><span class="name" title="([^"]*)"', text)
    assert lanes == [*(f"host-{n}" for n in range(7)), "gpu"]
    assert text.count("<li>") == 3 + 1


def test_a_small_run_shows_each_unit_and_its_pauses() -> None:
    made = receipts(6) + [replace(one, unit=one.unit + 6) for one in receipts(6, since=86_400)]
    text = page(report_of(made, made[6:]), Timeline.of(made), FAILURES.empty_table(), [], "version: 1")
    assert text.count("<title>unit") == 24
    assert "pauses between calls" in text
    assert "the shaded 0.50 s at the end are the tail" in text
    assert "Failures" not in text


def test_failures_are_grouped_with_examples_of_different_inputs() -> None:
    rows = [*failures(4), Failure("x.mp4", "open", "unreadable", "again")]
    first, second = grouped(failure_table(rows, 0), examples=3)
    assert (first.reason, first.count, len(first.inputs), len(first.empty), len(first.examples)) == (
        "corrupt", 4, 4, 2, 3,
    )  # fmt: skip
    assert (second.count, [row["message"] for row in second.examples]) == (2, ["no such file"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.254, "0.25 s"), (1.26, "1.3 s"), (99.9, "99.9 s"), (99.97, "1 min 40 s"),
     (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)  # fmt: skip
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_and_counts_in_words() -> None:
    assert [size(count) for count in (0, 999, 1000, 1.2345e9, 5e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.23 GB",
        "5 TB",
    ]
    assert [counted(n, "file") for n in (0, 1, 1200)] == ["0 files", "1 file", "1,200 files"]
