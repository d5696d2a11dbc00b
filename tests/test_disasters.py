"""What a machine and a store do to a job: it ends with one line or goes on, and nothing is lost."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.disasters import NotHereError
from benchmarks.disturbed import Bench
from benchmarks.faults import EVENTS, Event
from benchmarks.refusing import KEYS, Store, object_store
from pipeline import storage
from pipeline.errors import MediaError, SpecError, SpecListError, StorageError
from pipeline.plan import Canvas, Plan, Tube
from pipeline.sampling import Sampling
from pipeline.storage import Location, atomic_file, locate, write_atomic
from pipeline.video import read_clips

SAMPLING = Sampling(frames=4, stride=1, clips=1, height_px=96, width_px=128)
CANVAS = Canvas(frames=4, height_px=96, width_px=128)
PLAN = Plan(tubes=(Tube(name="a", kernel=(1, 96, 128), stride=(1, 96, 128), canvas=CANVAS),))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), copies=1)


def check(name: str, bench: Bench, number: int = 0) -> None:
    event: Event = next(event for event in EVENTS if event.name == name)
    try:
        outcome = event.round(bench, random.Random(f"test {name}"), number)
    except NotHereError as error:
        # Root, setpriv or gcc, as it says; the benchmark leaves its row out for the same reason.
        pytest.skip(str(error))
    assert outcome.well, outcome


@pytest.mark.slow
def test_a_shard_worker_that_is_killed_while_it_writes(bench: Bench) -> None:
    check("SIGKILL in mid-write", bench, number=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGKILL to a decode worker", 1),
        ("SIGKILL to an embed worker", 0),
        ("SIGKILL to driver and process group", 1),
        ("disk full, shard", 0),
        ("output made read-only", 0),
        ("S3: half of the puts 403", 0),
        ("inputs deleted", 0),
        ("clock jumps, shard", 0),
    ],
)
def test_a_job_is_disturbed(bench: Bench, name: str, number: int) -> None:
    check(name, bench, number)


# --- without a job ------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        # Only a file system of its own can be filled without harm to what else this machine does.
        pytest.skip("needs to mount a tmpfs: run it as root, or in `unshare -rm`")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("chunk_bytes", [100, 1 << 20])
def test_a_full_disk_is_named_and_what_was_there_stays(full_disk: Path, chunk_bytes: int) -> None:
    """Whether it is noticed in writing or, by what is buffered, in closing."""
    target = locate(str(full_disk / "out"))
    write_atomic(target, b"before")
    (full_disk / "filler").write_bytes(bytes(56 << 10))
    wanted = r"/disk/out: cannot be written \(No space left on device\); make room there, and run"

    def write() -> None:
        with atomic_file(target) as sink:
            for _ in range(max(1, (16 << 10) // chunk_bytes)):
                sink.write(bytes(chunk_bytes))

    with pytest.raises(StorageError, match=wanted):
        write()
    assert target.read_bytes() == b"before"
    assert [path.name for path in sorted(full_disk.iterdir())] == ["filler", "out"]


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"/file/out: cannot be written \((Not a directory|File exists)\)"):
        write_atomic(locate(str(tmp_path / "file" / "out")), b"")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    pytest.importorskip("moto.server")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with object_store() as store:
        locate(f"s3://bucket?{store.query}").filesystem.create_dir("bucket")
        yield store


def at(store: Store, key: str) -> Location:
    return locate(f"s3://bucket/{key}?{store.query}")


@pytest.mark.parametrize("status", [503, 500])
def test_half_of_the_puts_may_be_refused_for_a_while(store: Store, status: int) -> None:
    store.refuse(("PUT", "POST"), status, 2)
    for number in range(6):
        write_atomic(at(store, f"{number}"), b"data")
    assert store.refused >= 5
    store.relent()
    assert [info.size for info in at(store, "").files()] == [4] * 6


def test_an_object_is_put_in_one_request(store: Store) -> None:
    """One that takes several could be left half done."""
    store.refuse(("POST",), 403, 1)
    write_atomic(at(store, "one"), bytes(1 << 20))
    assert not store.refused


@pytest.mark.parametrize(("status", "said"), [(403, "ACCESS_DENIED"), (503, "SLOW_DOWN")])
def test_a_refused_put_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    monkeypatch.setattr(storage, "S3_ATTEMPTS", 2)
    store.refuse(("PUT",), status, 1)
    with pytest.raises(StorageError, match=rf"^bucket/one: cannot be written \(.*{said}.*\); put that right"):
        write_atomic(at(store, "one"), b"data")


def test_a_store_that_does_not_answer_is_no_fault_of_its_videos(
    store: Store, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "S3_ATTEMPTS", 2)
    for name in ("vp9.webm", "still.jpg"):
        write_atomic(at(store, name), (clips / name).read_bytes())
        store.refuse(("GET", "HEAD"), 503, 1)
        with pytest.raises(StorageError, match=rf"bucket/{name}: cannot be read \(.*503"):
            list(read_clips(at(store, name), SAMPLING, PLAN))
        store.refuse(("GET",), 500, 1)
        with pytest.raises(StorageError, match=rf"bucket/{name}: cannot be read \(.*INTERNAL_FAILURE"):
            list(read_clips(at(store, name), SAMPLING, PLAN))
        store.refuse(("GET", "HEAD"), 403, 1)
        with pytest.raises(MediaError, match="ACCESS_DENIED"):
            list(read_clips(at(store, name), SAMPLING, PLAN))
        store.relent()
    with pytest.raises(MediaError, match="no such file"):
        list(read_clips(at(store, "nothing.mp4"), SAMPLING, PLAN))


@pytest.mark.parametrize(
    "error", [SpecError("a.b", 1, "no"), SpecListError(["one", "two"]), StorageError("there: full")]
)
def test_errors_come_back_from_workers(error: Exception) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back)) == (type(error), str(error))
