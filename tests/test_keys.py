"""The set of known inputs agrees with a plain dict, whatever is added when."""

from __future__ import annotations

from unittest import mock

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.keys import NO_VERSION, Keys, doubled, keys_of, versions_of

Row = tuple[str, float | None, str | None]
rows = st.tuples(
    st.sampled_from("abcdefgh"), st.sampled_from([None, 0.0, 1.5]), st.sampled_from([None, "1-1", "2-2"])
)


def table(chunk: list[Row]) -> pa.Table:
    uris, starts, versions = zip(*chunk, strict=True)
    return pa.table(
        {
            "uri": pa.array(uris, pa.string()),
            "start_seconds": pa.array(starts, pa.float64()),
            "end_seconds": pa.nulls(len(chunk), pa.float64()),
            "version": pa.array(versions, pa.string()),
        }
    )


@mock.patch("pipeline.keys.RUN_ROWS", 8)
@given(st.lists(st.lists(rows, min_size=1, max_size=9), max_size=9))
def test_keys_agree_with_a_dict(chunks: list[list[Row]]) -> None:
    known, plain = Keys(), dict[tuple[str, float | None], str | None]()
    for chunk in chunks:
        inputs = table(chunk)
        keys, now = keys_of(inputs), versions_of(inputs)
        found, before = known.find(keys)
        assert found.tolist() == [(uri, start) in plain for uri, start, _ in chunk]
        for (uri, start, version), is_known, theirs, ours in zip(chunk, found, before, now, strict=True):
            if is_known and version is not None and plain[uri, start] is not None:
                assert (theirs == ours) == (plain[uri, start] == version)
            assert is_known or theirs == NO_VERSION
        fresh = ~doubled(keys, known)
        seen = set(plain)
        for (uri, start, version), is_fresh in zip(chunk, fresh, strict=True):
            assert is_fresh == ((uri, start) not in seen)
            seen.add((uri, start))
            plain.setdefault((uri, start), version)
        known.add(keys[fresh], now[fresh])
    assert len(known) == len(plain)
