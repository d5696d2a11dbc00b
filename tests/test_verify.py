"""`verify` finds each kind of harm in a folder and says what to do; commits survive what they should."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.attempts import Attempts
from pipeline.commits import Receipt, Run, compact, parts
from pipeline.errors import Failure, SpecError
from pipeline.storage import Location, atomic_file, locate
from pipeline.verify import verify


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A published run of three units, two rows each, and one failure."""
    run = Run(str(tmp_path), "f00d")
    for unit in range(3):
        ids = [f"{unit}.mp4#0-9/{view}" for view in range(2)]
        receipt = Receipt(unit, inputs=1, clips=2)
        receipt.files.append(run.write_table(f"units/{run.name(unit)}.parquet", pa.table({"clip_id": ids})))
        failures = [Failure("bad.mp4", "open", "unreadable", "empty")] if unit == 1 else []
        run.commit(receipt, failures)
    pq.write_table(pa.table({"unit": [0, 1, 2]}), tmp_path / "plan.parquet")
    receipts = list(run.receipts())
    files = [file for receipt in receipts for file in receipt.files]
    data = [file for file in files if file.path.startswith("units/")]
    joined = [compact(run, index, group) for index, group in enumerate(parts(data))]
    run.publish("embed", [*joined, *(file for file in files if file not in data)], receipts)
    for path in (tmp_path / "units").iterdir():
        path.unlink()
    return run


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


def flip_a_byte(folder: Path) -> None:
    path = first(folder, "embeddings/*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_a_file(folder: Path) -> None:
    first(folder, "embeddings/*").unlink()


def add_a_stranger(folder: Path) -> None:
    (folder / "embeddings" / "part-00009-beef.parquet").write_bytes(b"x")


def commit_twice(folder: Path) -> None:
    path = first(folder, "commits/*")
    path.with_name(path.name.replace("f00d", "beef")).write_bytes(path.read_bytes())


def truncate_a_record(folder: Path) -> None:
    path = first(folder, "commits/*")
    path.write_bytes(path.read_bytes()[:20])


def lose_a_record(folder: Path) -> None:
    first(folder, "commits/*").unlink()


def truncate_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def count_wrongly(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "rows": 7}))


def test_a_sound_folder_is_all_well(run: Run) -> None:
    verdict = verify(run.uri)
    assert verdict.problems == []
    assert (verdict.units, verdict.rows, verdict.failures, verdict.files) == (3, 6, 1, 2)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (flip_a_byte, "its checksum has changed since it was written: delete"),
        (lose_a_file, "is missing: delete"),
        (add_a_stranger, "part-00009-beef.parquet: no commit record knows this file: delete it"),
        (commit_twice, "unit 0 is committed twice: delete"),
        (truncate_a_record, "cannot be read: delete it and run the job again"),
        (lose_a_record, "1 of 3 units are not committed (first unit 0): run again"),
        (truncate_the_manifest, "manifest.json cannot be read: delete it and run"),
        (count_wrongly, "says 7 rows, the commit records 6: delete it and run"),
    ],
)
def test_each_harm_is_found_and_a_way_out_is_named(
    run: Run, harm: Callable[[Path], None], message: str
) -> None:
    harm(Path(run.uri))
    problems = verify(run.uri).problems
    assert any(message in problem for problem in problems), problems


def test_a_lost_manifest_is_built_again_from_the_parts(run: Run) -> None:
    before = (Path(run.uri) / "manifest.json").read_bytes()
    receipts = list(run.receipts())
    files = [file for receipt in receipts for file in receipt.files]
    data = [file for file in files if file.path.startswith("units/")]
    (joined,) = [compact(run, index, group) for index, group in enumerate(parts(data))]
    run.publish("embed", [joined, *(file for file in files if file not in data)], receipts)
    assert (Path(run.uri) / "manifest.json").read_bytes() == before
    lose_a_file(Path(run.uri))
    with pytest.raises(SpecError, match="is lost, and its units are committed; delete commits/"):
        compact(run, 0, data)


def test_doubled_rows_are_found(run: Run) -> None:
    receipts = list(run.receipts())
    table = pa.table({"clip_id": ["0.mp4#0-9/0", "x", "1.mp4#0-9/0", "y", "z", "1.mp4#0-9/0"]})
    file = run.write_table("embeddings/part-00000-f00d.parquet", table)
    run.publish("embed", [file], receipts)
    assert any("1.mp4#0-9/0 is there 2 times" in problem for problem in verify(run.uri).problems)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    target = locate(str(tmp_path / "x"))

    def interrupted() -> None:
        with atomic_file(target) as sink:
            sink.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_to_an_object_store_leaves_nothing(tmp_path: Path) -> None:
    """Such a stream would put what it has when it is closed, so it is opened only at the end."""
    store = pa.fs.SubTreeFileSystem(str(tmp_path), pa.fs.LocalFileSystem())

    def interrupted() -> None:
        with atomic_file(Location(store, "x")) as sink:
            sink.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with atomic_file(Location(store, "x")) as sink:
        sink.write(b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_an_input_is_tried_a_stated_number_of_times_and_then_left_out(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "f00d")

    def start(most: int = 3, session: str = "session") -> Attempts:
        return Attempts(run, 0, session, most, timeout_seconds=60).begin()

    counter = start()
    counter.note(3)  # the first time nobody is noted: that would cost a write for every input
    counter = start()
    counter.note(3)
    counter.note(4)
    counter = start()
    assert counter.verdict(3) is None
    assert (counter.deaths, counter.verdict(4)) == ({"4": 2}, None)  # the first death was its, too
    counter.note(4)
    counter = start()
    assert counter.verdict(4) == ("crashed", 3)
    counter.note(5)
    assert start().deaths == {"4": 3, "5": 1}
    assert start(session="another run of the job").deaths == {}
    counter.end()
    assert list((tmp_path / "attempts").iterdir()) == []


def test_an_input_that_may_be_tried_once_is_noted_from_the_start(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "f00d")
    Attempts(run, 0, "session", 1, timeout_seconds=60).begin().note(7)
    assert Attempts(run, 0, "session", 1, timeout_seconds=60).begin().verdict(7) == ("crashed", 1)


def test_a_death_after_the_time_limit_was_a_hang(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "f00d")
    Attempts(run, 0, "session", 1, timeout_seconds=0.05).begin().note(7)
    time.sleep(0.1)
    assert Attempts(run, 0, "session", 1, timeout_seconds=0.05).begin().verdict(7) == ("timeout", 1)


def test_a_death_while_writing_is_nobodys(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "f00d")
    for _ in range(3):
        counter = Attempts(run, 0, "session", 2, timeout_seconds=60).begin()
        counter.note(7)
        counter.note(None)
    assert Attempts(run, 0, "session", 2, timeout_seconds=60).begin().deaths == {}
