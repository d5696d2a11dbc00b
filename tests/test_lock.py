"""One writer per run folder: on a disk, and on a real S3 protocol server on loopback."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from holder import Other

from pipeline import lock
from pipeline.errors import SpecError
from pipeline.lock import LockLostError, only_writer
from pipeline.storage import Location, locate

KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
# Seconds that let tests be quick: lock.py has the real ones.
QUICK = {"RENEW_SECONDS": 0.3, "LOST_SECONDS": 3.0, "EXPIRY_SECONDS": 4.0, "POLL_SECONDS": 0.2}
PATIENT = {"RENEW_SECONDS": 0.1, "LOST_SECONDS": 15.0, "EXPIRY_SECONDS": 20.0, "POLL_SECONDS": 0.1}


Start = Callable[[str, dict[str, float]], Other]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    others: list[Other] = []

    def begin(uri: str, seconds: dict[str, float]) -> Other:
        others.append(Other(uri, tmp_path / "inside", seconds))
        return others[-1]

    yield begin
    for other in others:
        other.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """host:port of an S3 server with one bucket, named `bucket`."""
    moto = pytest.importorskip("moto.server")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        address = "{}:{}".format(*running.get_host_and_port())
        locate(_s3(address, "")).filesystem.create_dir("bucket")
        yield address
    running.stop()


def _s3(server: str, folder: str) -> str:
    query = f"scheme=http&endpoint_override={server}&region=us-east-1&allow_bucket_creation=true"
    return f"s3://bucket/{folder}?{query}"


@pytest.fixture
def bucket(server: str, request: pytest.FixtureRequest) -> str:
    """A run's folder on S3, of this test alone."""
    return _s3(server, request.node.name)


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "disk" else request.getfixturevalue("bucket")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUICK.items():
        monkeypatch.setattr(lock, name, value)


def _leases(uri: str) -> list[str]:
    return [info.path for info in (locate(uri) / ".lease").files()]


def _refusal(uri: str) -> str:
    with pytest.raises(SpecError) as refused, only_writer(uri):
        pass
    return str(refused.value)


def _loss(check: Callable[[], None]) -> str:
    """What `check` says when it raises, which it must do soon."""
    for _ in range(400):
        try:
            check()
        except LockLostError as error:
            return str(error)
        time.sleep(0.05)
    return "still held after 20 s"


def test_a_second_holder_is_refused_until_the_first_leaves(folder: str, start: Start) -> None:
    other = start(folder, QUICK)
    with only_writer(folder) as check:
        check()
        refusal = other.do("take")
        assert refusal.startswith(f"refused: output.path = {folder!r}: another run ")
        assert refusal.endswith(" is writing to it; wait for it or choose another")
        if folder.startswith("s3"):
            assert f"pid {os.getpid()}" in refusal
        check()
    assert other.do("take") == "held"
    assert "is writing to it" in _refusal(folder)
    assert other.do("leave") == "left"
    with only_writer(folder):
        pass
    if folder.startswith("s3"):
        assert _leases(folder) == []


def test_a_killed_holder_does_not_block_the_next(folder: str, start: Start) -> None:
    other = start(folder, QUICK)
    assert other.do("take") == "held"
    other.process.send_signal(signal.SIGKILL)
    other.process.wait()
    if folder.startswith("s3"):  # nor does what is no lease at all
        stranger = locate(folder) / ".lease/0-a-stranger"
        with stranger.filesystem.open_output_stream(stranger.path) as stream:
            stream.write(b"\xff not JSON")
    said: list[str] = []
    begun = time.monotonic()
    with only_writer(folder, said.append) as check:
        waited = time.monotonic() - begun
        check()
    if folder.startswith("s3"):
        assert any(f"pid {other.process.pid}) wants or has output.path; waiting" in line for line in said)
        assert lock.EXPIRY_SECONDS <= waited < lock.EXPIRY_SECONDS + 10
        assert _leases(folder) == []
    else:
        assert said == []
        assert waited < 10


def test_of_two_at_once_one_holds_and_never_both(folder: str, start: Start) -> None:
    others = [start(folder, PATIENT) for _ in range(2)]
    for _ in range(10):
        for other in others:
            other.say("race")
        answers = [other.answer().partition(":")[0] for other in others]
        assert set(answers) <= {"held", "refused"}
        assert "held" in answers


def test_a_lease_that_is_removed_while_it_is_read_is_gone(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = locate(bucket) / ".lease/0"
    with place.filesystem.open_output_stream(place.path) as stream:
        stream.write(b" " * lock.LEASE_BYTES)

    def vanishing(self: Location) -> bytes:
        with self.filesystem.open_input_stream(self.path) as stream:
            self.delete()
            return stream.read()

    monkeypatch.setattr(Location, "read_bytes", vanishing)
    with only_writer(bucket):
        assert not place.exists()


def test_a_holder_that_was_stopped_and_overtaken_notices(bucket: str, start: Start) -> None:
    other = start(bucket, QUICK)
    assert other.do("take") == "held"
    assert other.do("ask") == "held"
    other.process.send_signal(signal.SIGSTOP)
    with only_writer(bucket) as check:
        (mine,) = _leases(bucket)
        other.say("ask")
        other.process.send_signal(signal.SIGCONT)
        assert other.answer().startswith(f"lost: {bucket} is no longer this run's (")
        assert other.do("leave") == "left"
        assert other.do("ask").startswith("lost")
        # What it may have put on its way is gone, and the one that holds it now was not harmed.
        assert _leases(bucket) == [mine]
        check()


def test_a_lease_that_is_gone_is_lost_and_not_put_again(bucket: str) -> None:
    with only_writer(bucket) as check:
        (mine,) = _leases(bucket)
        locate(bucket).filesystem.delete_file(mine)
        assert "another run took it over" in _loss(check)
        assert _leases(bucket) == []
        with pytest.raises(LockLostError):  # for good
            check()


def test_a_lease_that_cannot_be_renewed_is_lost(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise OSError("the store is away")

    with only_writer(bucket) as check:
        monkeypatch.setattr(lock, "write_atomic", away)
        begun = time.monotonic()
        assert "not renewed for 3 s" in _loss(check)
        assert time.monotonic() - begun > 2
        monkeypatch.undo()  # that the store is back changes nothing
        with pytest.raises(LockLostError):
            check()


def test_clocks_that_jump_and_differ_change_nothing(bucket: str, start: Start) -> None:
    holder, contender = start(bucket, QUICK), start(bucket, QUICK)
    contender.do("back")
    assert holder.do("take") == "held"
    for jump in ("forward", "back", "forward"):
        assert holder.do(jump) == "jumped"
        assert holder.do("ask") == "held"
        assert contender.do("take").startswith("refused")
        assert contender.do("back" if jump == "back" else "forward") == "jumped"
    holder.process.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    assert contender.do("take") == "held"
    assert QUICK["EXPIRY_SECONDS"] - 1 <= time.monotonic() - begun < QUICK["EXPIRY_SECONDS"] + 10
    assert contender.do("ask") == "held"


def test_a_process_may_end_without_letting_go(bucket: str, start: Start) -> None:
    other = start(bucket, QUICK)
    assert other.do("take") == "held"
    other.say("end")
    _, errors = other.process.communicate(timeout=60)
    assert (other.process.returncode, errors) == (0, "")


def test_a_store_that_does_not_answer_is_an_error_of_the_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.S3_ATTEMPTS", 2)  # as often as it is asked, the answer is the same
    refusal = _refusal(_s3("127.0.0.1:9", "out"))
    assert re.fullmatch(r"output.path = .*: cannot be written to \(.*NETWORK_CONNECTION.*\)", refusal)


def test_a_bucket_that_must_not_be_written_to(server: str, bucket: str) -> None:
    def users_are_checked_after(requests: bytes) -> None:
        address = f"http://{server}/moto-api/reset-auth"
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(address, requests, plain)).close()

    users_are_checked_after(b"0")
    try:
        assert re.search(r"cannot be written to \(.*(ACCESS_DENIED|INVALID_ACCESS_KEY)", _refusal(bucket))
    finally:
        users_are_checked_after(b"inf")
    with only_writer(bucket):
        pass


def test_a_folder_that_must_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write anywhere
    try:
        assert "cannot be written to (Permission denied)" in _refusal(str(tmp_path / "out"))
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_a_folder_and_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written to (File exists)" in _refusal(str(tmp_path / "file"))

    def without(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", without)
    assert "cannot be locked (No locks available)" in _refusal(str(tmp_path / "out"))


def test_an_error_of_the_holder_is_passed_on_as_it_is(folder: str) -> None:
    with pytest.raises(BlockingIOError), only_writer(folder):
        raise BlockingIOError
    with only_writer(folder):
        pass
