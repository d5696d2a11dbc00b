"""A sample of a corpus: spread evenly, decoded as workers do it, and not stopped by what kills a decoder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from deadly import Deadly
from samples import SMALL, cutting_of

from jobs.apart import Apart
from jobs.sample import MOST, Part, Sample, Spread, decoded, header_seconds, measure, spread_over
from pipeline.corpus import read_corpus
from pipeline.sampling import Sampling

SAMPLING = Sampling(**SMALL)


@pytest.mark.parametrize("rows", [1, 7, MOST, 100_000])
@pytest.mark.parametrize("chunk", [1, 1000, 1 << 20])
def test_a_spread_is_even_whatever_comes_in_whatever_chunks(rows: int, chunk: int) -> None:
    if rows // chunk > 5000:
        chunk = 20
    spread = Spread()
    for start in range(0, rows, chunk):
        spread.add(pa.table({"n": range(start, min(rows, start + chunk))}))
    picked = [row["n"] for row in spread.rows()]
    assert spread.seen == rows
    assert min(rows, MOST) <= len(picked) <= 2 * MOST + 1
    gaps = {b - a for a, b in pairwise(sorted(picked))}
    assert len(gaps) <= 1
    # And the first few of them are so already.
    some = sorted(picked[: len(picked) // 4])
    if len(some) > 8:
        assert max(b - a for a, b in pairwise(some)) <= 2 * rows / len(some)


def test_a_part_is_what_a_worker_makes_of_the_input(clips: Path) -> None:
    cutting = cutting_of(clips, SAMPLING)
    corpus, spreads = spread_over(read_corpus(str(clips / "vp9.webm")))
    (_,) = corpus.chunks
    (row,) = spreads["video"].rows()
    part = decoded(cutting, "video", row)
    assert (part.planned_views, part.views, part.share, part.reasons, part.failed) == (2, 2, 1.0, {}, False)
    assert part.cpu_seconds > 0
    assert part.file_bytes >= 2 * cutting.plans["video"].bytes_per_clip
    assert part.meta is not None
    assert part.meta["uri"].to_pylist() == ["vp9.webm"] * 2
    assert not [name for name in part.meta.column_names if name.startswith("tube")]


def test_of_many_windows_some_stand_for_all(clips: Path) -> None:
    """And what is hashed by its content is no other file for that."""
    sampling = Sampling(**{**SMALL, "clips": None, "every_seconds": 0.1})
    cutting = replace(cutting_of(clips, sampling), identity="content")
    corpus, spreads = spread_over(read_corpus(str(clips / "h264_bframes.mp4")))
    (_,) = corpus.chunks
    (row,) = spreads["video"].rows()
    part = decoded(cutting, "video", row)
    assert part.planned_views > 8
    assert (part.views, part.failed) == (8, False)
    assert part.share == pytest.approx(8 / part.planned_views)
    sample = Sample(1, [part])
    assert sample.amounts(lambda one: one.views) == [pytest.approx(part.planned_views)]
    assert sample.population == 2  # most of it was not looked at


def test_what_fails_kills_or_hangs_its_decoder_is_counted_and_its_neighbours_are_measured(
    clips: Path, tmp_path: Path
) -> None:
    for name in ("vp9.webm", "still.jpg"):
        shutil.copy(clips / name, tmp_path)
    shutil.copy(clips / "vp9.webm", tmp_path / "murder.webm")
    (tmp_path / "empty.mp4").write_bytes(b"")
    plain = cutting_of(tmp_path, SAMPLING)
    cutting = Deadly(**{name: getattr(plain, name) for name in plain.__dataclass_fields__})
    corpus, spreads = spread_over(read_corpus(str(tmp_path)))
    list(corpus.chunks)
    with Apart() as apart:
        samples = measure(cutting, spreads, 60.0, apart)
        assert {media: len(sample.parts) for media, sample in samples.items()} == {"video": 3, "image": 1}
        video = samples["video"]
        assert (video.inputs, video.failed, video.unfinished) == (3, 2, 0)
        assert video.reasons == {"crashed": 1, "unreadable": 1}
        assert sum(part.views for part in video.parts) == 2
        assert header_seconds(cutting, "empty.mp4", apart) is None
        assert header_seconds(cutting, "vp9.webm", apart) == pytest.approx(2, abs=0.5)

        shutil.move(tmp_path / "murder.webm", tmp_path / "sleep.webm")
        corpus, spreads = spread_over(read_corpus(str(tmp_path / "sleep.webm")))
        list(corpus.chunks)
        samples = measure(cutting, spreads, 0.5, apart)
        assert (samples["video"].parts, samples["video"].unfinished) == ([], 1)


def test_a_failure_is_an_input_that_gave_nothing() -> None:
    assert Part(2, 1.0, views=0, reasons={"corrupt": 1}).failed
    assert not Part(2, 1.0, views=1, reasons={"corrupt": 1}).failed
    assert not Part(2, 1.0, views=0).failed  # it is too short, and that is all
