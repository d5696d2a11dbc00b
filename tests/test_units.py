"""Units hold every clip once and keep to their size, however the corpus comes in chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import dense

from pipeline.corpus import Media, read_corpus
from pipeline.errors import SpecError
from pipeline.plan import Canvas, Plan
from pipeline.sampling import Sampling
from pipeline.tables import complete
from pipeline.units import Durations, pack

PLAN = dense(Canvas(frames=2, height_px=8, width_px=8), (1, 4, 4))  # 384 bytes a clip
STILL = PLAN.image()
assert STILL is not None
BOTH: dict[Media, Plan] = {"video": PLAN, "image": STILL}


def chunks(names: Sequence[str], rows: int = 1000) -> Iterator[pa.Table]:
    for start in range(0, len(names), rows):
        yield complete(pa.table({"uri": pa.array(names[start : start + rows], pa.string())}))


def units(
    inputs: Iterator[pa.Table],
    sampling: Sampling,
    unit_bytes: int,
    plans: dict[Media, Plan] = BOTH,
    durations: Durations = lambda inputs: [],
) -> list[dict[str, Any]]:
    tables = pack(inputs, sampling, plans, unit_bytes, durations)
    return [row for table in tables for row in table.to_pylist()]


@given(
    st.lists(st.floats(0.1, 300), min_size=1, max_size=40),
    st.integers(384, 384 * 300),
    st.sampled_from([{"every_seconds": 1.0}, {"clips": 7}]),
    st.integers(1, 50),
    st.booleans(),
)
def test_units_hold_every_clip_once_and_keep_to_their_size(
    seconds: list[float], unit_bytes: int, clips: dict, rows: int, stills: bool
) -> None:
    names = [f"{i}.{'jpg' if stills and i % 3 == 0 else 'mp4'}" for i in range(len(seconds))]
    sampling = Sampling(frames=2, height_px=8, width_px=8, **clips)

    def durations(inputs: pa.Table) -> list[float]:
        return [seconds[int(name.partition(".")[0])] for name in inputs["uri"].to_pylist()]

    made = units(chunks(names, rows), sampling, unit_bytes, durations=durations)
    assert made == units(chunks(names, rows), sampling, unit_bytes, durations=durations)
    for media in ("video", "image"):
        ours = [row for row in made if row["media"] == media]
        items = [item for row in ours for item in row["items"]]
        wanted = [name for name in names if name.endswith("jpg") == (media == "image")]
        assert list(dict.fromkeys(item["uri"] for item in items)) == wanted  # in order
        for name in wanted:
            parts = [item for item in items if item["uri"] == name]
            assert parts[0]["first_clip"] == 0
            assert parts[-1]["stop_clip"] is None
            for left, right in itertools.pairwise(parts):
                assert left["stop_clip"] == right["first_clip"]
        # A unit may run over by the last input that starts in it.
        most = max(1, unit_bytes // BOTH[media].bytes_per_clip)
        assert all(row["clips"] <= 2 * most for row in ours)


@given(st.integers(1, 200), st.integers(1, 60))
def test_chunks_do_not_show_in_the_units_of_a_large_corpus(count: int, rows: int) -> None:
    """What is too small to be large is cut by its size, which is known when all of it has been seen."""
    names = [f"{i}.mp4" for i in range(count)]
    sampling = Sampling(frames=2, height_px=8, width_px=8, clips=3)
    small = 384 * 5
    assert units(chunks(names, rows), sampling, small) == units(chunks(names), sampling, small)


def test_a_small_corpus_still_gives_several_workers_something_to_do() -> None:
    made = units(chunks([f"{i}.mp4" for i in range(40)]), Sampling(), 1 << 30)
    assert len(made) >= 12
    made = units(chunks(["0.mp4"]), Sampling(clips=9), 1 << 30)
    assert len(made) == 1  # one video is not decoded twice for that
    windows = Sampling(clips=None, every_seconds=1.0)
    made = units(chunks(["0.mp4", "1.mp4"]), windows, 1 << 30, durations=lambda inputs: [1.0, 1600.0])
    assert max(row["clips"] for row in made) <= 101  # and one long one is not left to a single worker
    assert sum(row["clips"] for row in made) == 1601


def test_images_get_units_of_their_own(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.webm", "c/still.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    made = units(read_corpus(str(tmp_path)).chunks, Sampling(), 1 << 20)
    assert [row["media"] for row in made] == ["video"] * 2 + ["image"]
    with pytest.raises(SpecError, match="c/still.JPG': an image, but this model has no image plan"):
        units(read_corpus(str(tmp_path)).chunks, Sampling(), 1 << 20, plans={"video": PLAN})
