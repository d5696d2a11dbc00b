"""How much there is to do, by what inputs say of themselves: none is decoded, and no corpus is held."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from jobs import frozen
from jobs.forecast import Figure, counted, exactly
from jobs.frozen import Source
from jobs.sample import Spread, spread_over
from jobs.spec import EmbedSpec, ShardSpec
from pipeline.corpus import Media
from pipeline.generations import inputs_of, items_of
from pipeline.sampling import count_windows

HEADERS = 64  # of inputs of the first chunk that are read where clips depend on how long a video is
HEADERS_SECONDS = 30.0  # after which no more are

Seconds = Callable[[str], float | None]


@dataclass
class Extent:
    """Inputs, units, and for each medium views and units.

    largest_unit_bytes: of tubes. headers: how many windows the inputs have whose headers were read. spreads:
    what was picked of the inputs of each medium; none of shards.
    """

    inputs: int = 0
    units: int = 0
    largest_unit_bytes: int = 0
    views: Counter[Media] = field(default_factory=Counter)
    units_of: Counter[Media] = field(default_factory=Counter)
    headers: list[float] = field(default_factory=list)
    asked: int = 0  # inputs whose header a run reads
    spreads: Mapping[Media, Spread] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)  # {suffix: files that are no media}

    def planned(self, media: Media) -> Figure:
        """Views by the headers of inputs."""
        count = float(self.views[media])
        return counted(self.headers, count, self.asked) if media == "video" and self.asked else exactly(count)

    def batch_views(self, media: Media, most: int) -> int:
        """In an average batch of a model: it takes no views of two units at once."""
        return max(1, min(most, round(self.views[media] / max(1, self.units_of[media]))))


def extent(spec: ShardSpec | EmbedSpec, source: Source, seconds_of: Seconds) -> Extent:
    """List the input, and pack it into units as a run does.

    Args:
        seconds_of: how long the input of a uri is, None where its header cannot be read; asked of a few.
    """
    found = Extent()
    if source.corpus is not None:
        corpus, found.spreads = spread_over(source.corpus)
        source = replace(source, corpus=corpus)
        found.left_out = corpus.skipped
    until = time.monotonic() + HEADERS_SECONDS

    def durations(root: str, inputs: pa.Table) -> list[float | None]:
        """Those of a few inputs, each of which stands for its neighbours."""
        count = inputs.num_rows
        most = min(count, max(1, HEADERS // (1 + len(found.headers))))  # fewer of each later chunk
        uris = inputs["uri"].take([k * count // most for k in range(most)]).to_pylist()
        known: list[float | None] = []
        for uri in uris:
            if not known or time.monotonic() < until:
                known.append(seconds_of(uri))
        assert source.sampling.every_seconds is not None
        found.headers += [count_windows(one or 0.0, source.sampling.every_seconds) for one in known]
        found.asked += count
        return [known[k * len(known) // count] for k in range(count)]

    crops = source.sampling.views if source.corpus is not None else 1  # a shard's row is a view already
    for table in frozen.units_of(spec, source, durations):
        found.units += table.num_rows
        found.inputs += inputs_of(items_of(table))
        for media, clips in zip(table["media"].to_pylist(), table["clips"].to_pylist(), strict=True):
            found.views[media] += clips * crops
            found.units_of[media] += 1
            unit_bytes = clips * crops * source.plans[media].bytes_per_clip
            found.largest_unit_bytes = max(found.largest_unit_bytes, unit_bytes)
    return found
