"""A node of a cluster is lost in mid-run. benchmarks/nodes.py does more rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.nodes import rounds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus and the undisturbed run are made once."""
    return tmp_path_factory.mktemp("nodes")


def test_decoders_that_are_lost_are_done_without_or_asked_for(folder: Path) -> None:
    """Whether a decoded unit is lost with its node, and the job stops for it, is a matter of timing."""
    tally = rounds("decode node lost", 1, folder, seed=20, inputs=64)
    assert tally.sound, tally
    assert tally.completed + tally.failed == 1
    assert all("workers of MapBatches(Decode) are missing" in error for error in tally.errors)


def test_a_model_that_has_no_place_any_more_ends_the_job_and_a_rerun_completes_it(folder: Path) -> None:
    tally = rounds("embed node lost", 1, folder, seed=20, inputs=64)
    assert tally.sound, tally
    assert tally.failed == 1
    assert "(ray.wait_seconds) while 1 of 1 workers of MapBatches(Embed) are missing" in tally.errors[0]
    assert "\n" not in tally.errors[0]


def test_a_model_whose_node_is_replaced_goes_on(folder: Path) -> None:
    tally = rounds("embed node lost, replaced", 1, folder, seed=20, inputs=64)
    assert tally.sound, tally
    assert tally.completed == 1, tally.errors
