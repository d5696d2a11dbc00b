"""How much there is to do by headers: a few are read, and each stands for its neighbours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from samples import SMALL, embed_spec

from jobs import frozen
from jobs.extent import HEADERS, Extent, extent
from jobs.sample import Part, Sample
from jobs.spec import EmbedSpec, load
from jobs.survey import _planned

WINDOWS = {**SMALL, "clips": None, "every_seconds": 1.0}


def test_headers_stand_for_their_neighbours(tmp_path: Path) -> None:
    """The first half of a list is of ten seconds each, the second of one; none of the files is opened."""
    names = [f"{n:04d}.mp4" for n in range(1000)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    spec = load(embed_spec(tmp_path / "list.txt", tmp_path / "out", sampling=WINDOWS))
    assert isinstance(spec, EmbedSpec)
    asked: list[str] = []

    def seconds_of(uri: str) -> float | None:
        asked.append(uri)
        return 10.0 if uri < "0500" else None if uri == names[-1] else 1.0

    found = extent(spec, frozen.list_source(spec), seconds_of)
    assert len(asked) == HEADERS == len(found.headers)
    assert (found.inputs, found.asked) == (1000, 1000)
    assert found.views["video"] == pytest.approx(500 * 10 + 500, rel=0.05)
    assert found.units == found.units_of["video"] > 16
    assert found.largest_unit_bytes <= spec.output.unit_bytes
    planned = found.planned("video")
    assert planned.low is not None
    assert planned.high is not None
    assert planned.low < 5500 < planned.high
    assert found.spreads["video"].seen == 1000


def test_batches_are_no_larger_than_units() -> None:
    there = Extent(views=Counter(video=100), units_of=Counter(video=10))
    assert [there.batch_views("video", most) for most in (4, 16)] == [4, 10]


def test_the_larger_sample_tells_how_many_views_are_planned() -> None:
    there = Extent(views=Counter(video=25), headers=[2.0, 3.0], asked=10)
    assert _planned(there, "video", Sample(10, [Part(4, 1.0)] * 5)).value == 40
    assert _planned(there, "video", Sample(10, [Part(4, 1.0)])) == there.planned("video")
    exact = Extent(views=Counter(video=25, image=3))
    assert _planned(exact, "video", Sample(10, [Part(4, 1.0)] * 5)).value == 25
    assert exact.planned("image").is_exact
