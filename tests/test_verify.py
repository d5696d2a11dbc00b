"""`verify` finds each kind of harm in a folder and says what to do; commits survive what they should."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import generations
from pipeline.attempts import Attempts
from pipeline.commits import Receipt, Run
from pipeline.errors import Failure, SpecError
from pipeline.parts import arrange, join, join_failures, measure
from pipeline.storage import Location, atomic_file, locate
from pipeline.units import REDOES
from pipeline.verify import verify


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A published run of three units, two rows each, and one failure."""
    run = Run(str(tmp_path), "f00d")
    planned = [unit_of(item(f"{unit}.mp4"), item("bad.mp4")) for unit in range(3)]
    generations.write(run, (), [pa.Table.from_pylist(planned, schema=UNITS)], {"fingerprint": "f00d"})
    for unit in range(3):
        commit(run, unit)
    publish(run)
    return run


def item(uri: str, redoes: tuple[int, int] | None = None) -> dict[str, Any]:
    unit, number = redoes or (None, None)
    return {"uri": uri, "first_clip": 0, "stop_clip": None, "redoes_unit": unit, "redoes_item": number}


def unit_of(*items: dict[str, Any]) -> dict[str, Any]:
    return {"media": "video", "clips": 2, "items": list(items)}


ITEM = [("uri", pa.string()), ("first_clip", pa.int64()), ("stop_clip", pa.int64()), *REDOES.items()]
UNITS = pa.schema([("media", pa.string()), ("clips", pa.int64()), ("items", pa.list_(pa.struct(ITEM)))])


def commit(run: Run, unit: int, prefix: str = "") -> None:
    ids = [f"{prefix}{unit}.mp4#0-9/{view}" for view in range(2)]
    receipt = Receipt(unit, inputs=1, clips=2)
    receipt.files.append(run.write_table(f"units/{run.name(unit)}.parquet", pa.table({"clip_id": ids})))
    failures = [Failure("bad.mp4", "open", "unreadable", "empty", item=1)] if unit == 1 else []
    run.commit(receipt, failures)


def publish(run: Run) -> None:
    """As a job does it."""
    plan = generations.read(run.place)
    void = generations.void(run.place, plan)
    receipts = [receipt for receipt in run.receipts() if receipt.unit not in void.units]
    units = [file for receipt in receipts for file in receipt.files if file.path.startswith("units/")]
    arranged = arrange(run, units, plan[-1].number)
    files = [measure(run, name) for name in arranged.kept]
    files += [join(run, name, slices) for name, slices in arranged.to_write]
    lost = join_failures(run, {receipt.unit for receipt in receipts}, void, plan[-1].number)
    run.publish("embed", [*files, *([lost] if lost else [])], receipts)
    listed = {file.path for file in (*files, *([lost] if lost else []))}
    for name in ("units", "failures", "embeddings"):
        for path in (Path(run.uri) / name).iterdir():
            if f"{name}/{path.name}" not in listed:
                path.unlink()


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
    (Path(run.uri) / "manifest.json").unlink()
    assert verify(run.uri).problems == ["there is no manifest.json: run the job again, which builds it"]
    publish(run)
    assert (Path(run.uri) / "manifest.json").read_bytes() == before
    lose_a_file(Path(run.uri))
    with pytest.raises(SpecError, match="is in no part of embeddings/, and its unit is committed; delete"):
        publish(run)


def test_what_is_done_again_takes_the_place_of_what_was(run: Run) -> None:
    """Unit 0 as a whole, and of unit 1 what failed; parts are written anew only where they must be."""
    old = first(Path(run.uri), "embeddings/*")
    again = [
        unit_of(item("0.mp4", (0, 0)), item("bad.mp4", (0, 1))),
        unit_of(item("bad.mp4", (1, 1))),
        unit_of(item("new.mp4")),
    ]
    plan = generations.read(run.place)
    generations.write(run, plan, [pa.Table.from_pylist(again, schema=UNITS)], plan[0].settings)
    for unit in (3, 4, 5):
        assert verify(run.uri).problems == [
            f"{6 - unit} of 6 units are not committed (first unit {unit}): run again"
        ]
        commit(run, unit, "again/")
    publish(run)
    verdict = verify(run.uri)
    assert verdict.problems == []
    assert (verdict.units, verdict.rows, verdict.failures) == (5, 10, 0)
    found = pq.read_table(Path(run.uri) / "embeddings")["clip_id"].to_pylist()
    assert {name.partition("#")[0] for name in found} == {
        "1.mp4", "2.mp4", "again/3.mp4", "again/4.mp4", "again/5.mp4",
    }  # fmt: skip
    assert not old.exists()
    before = first(Path(run.uri), "embeddings/*").stat().st_mtime_ns
    plan = generations.read(run.place)
    more = [unit_of(item("newer.mp4"))]
    generations.write(run, plan, [pa.Table.from_pylist(more, schema=UNITS)], plan[0].settings)
    commit(run, 6)
    publish(run)
    assert first(Path(run.uri), "embeddings/*").stat().st_mtime_ns == before  # nothing in it has changed
    assert verify(run.uri).problems == []


def test_a_publishing_that_was_killed_is_done_again(run: Run) -> None:
    """Parts of it may be there already, beside those that the old manifest lists."""
    plan = generations.read(run.place)
    again = [unit_of(item("0.mp4", (0, 0)), item("bad.mp4", (0, 1)))]
    generations.write(run, plan, [pa.Table.from_pylist(again, schema=UNITS)], plan[0].settings)
    commit(run, 3)
    units = [f for r in run.receipts() if r.unit for f in r.files if f.path.startswith("units/")]
    for name, slices in arrange(run, units, 1, part_bytes=1).to_write[:2]:
        join(run, name, slices)
    publish(run)
    verdict = verify(run.uri)
    assert verdict.problems == []
    assert (verdict.units, verdict.rows, verdict.failures) == (3, 6, 1)


def test_a_record_that_cannot_be_read_ends_a_run_with_its_name(run: Run) -> None:
    truncate_a_record(Path(run.uri))
    with pytest.raises(SpecError, match="commits/00000000-f00d.json is not as it was written; delete it"):
        list(run.receipts())


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


def test_a_lost_node_is_no_inputs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(str(tmp_path), "f00d")
    nodes = {"one": True, "two": True, "three": True}
    monkeypatch.setattr("pipeline.attempts._is_alive", nodes.__getitem__)

    def start(node: str) -> Attempts:
        monkeypatch.setattr("pipeline.attempts._node", lambda: node)
        counter = Attempts(run, 0, "session", 2, timeout_seconds=60).begin()
        counter.note(7)
        return counter

    start("one")
    nodes["one"] = False
    assert start("two").deaths == {}
    nodes["two"] = False
    assert start("three").deaths == {}
    assert start("two").deaths == {"7": 1}  # its worker moved, though its node lives


def test_a_death_while_writing_is_nobodys(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "f00d")
    for _ in range(3):
        counter = Attempts(run, 0, "session", 2, timeout_seconds=60).begin()
        counter.note(7)
        counter.note(None)
    assert Attempts(run, 0, "session", 2, timeout_seconds=60).begin().deaths == {}
