"""Damaged files by the dozen: none is lost, none counts twice, none takes anything else down with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz
from benchmarks.mutations import KINDS, kind_of, make, mutate, names, sources


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sources(real=False)


def test_a_name_stands_for_the_same_bytes(files: dict[str, bytes], tmp_path: Path) -> None:
    chosen = list(names(files, 60, seed=3))
    assert chosen == list(names(files, 60, seed=3))
    assert [kind_of(name) for name in chosen] == 3 * list(KINDS)
    for name in chosen:
        made = mutate(name, files, seed=3)
        assert made == mutate(name, files, seed=3)
        make(name, files, 3, tmp_path)
        if kind_of(name) != "special":
            assert (tmp_path / name).read_bytes() == made
    assert any(mutate(name, files, seed=4) != mutate(name, files, seed=3) for name in chosen)


@pytest.mark.slow
def test_every_damaged_file_is_accounted_for(tmp_path: Path) -> None:
    fuzzed = fuzz(60, seed=0, folder=tmp_path / "fuzz", real=False)
    assert fuzzed.broken == []
    assert len(fuzzed.inputs) == len(set(fuzzed.inputs)) == 60 + len(sources(real=False))
    assert {fuzzed.fate(name) for name in fuzzed.inputs} >= {"rows", "failures"}


@pytest.mark.slow
def test_thousands_of_damaged_files_are_accounted_for(tmp_path: Path) -> None:
    assert fuzz(2000, seed=0, folder=tmp_path / "fuzz").broken == []
