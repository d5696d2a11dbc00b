"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from jobs.cluster import connected

# A machine may be busy; how long an example takes is no reason to fail.
hypothesis.settings.register_profile("tubelet", deadline=None)
hypothesis.settings.load_profile("tubelet")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def clips() -> Path:
    """The generated clips; tests/resources/make_clips.py says what each is for."""
    return Path(__file__).parent / "resources"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real clips that are not part of the project; tests that want them are skipped without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder of real clips beside the project")
    return folder


@pytest.fixture(scope="session", autouse=True)
def private_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray of these tests keeps to a folder of its own, and never joins a cluster that is running here."""
    folder = tmp_path_factory.mktemp("ray")
    # Ray's sockets lie below it, and a socket's path is short.
    short = Path(os.environ.get("TMPDIR", "/tmp")) / f"tubelet-{os.getpid()}"
    short.symlink_to(folder)
    before = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_TMPDIR")}
    os.environ["RAY_TMPDIR"] = str(short)
    yield
    short.unlink()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def corpus(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated clips and some that are broken."""
    folder = tmp_path_factory.mktemp("corpus")
    for path in clips.iterdir():
        if path.suffix != ".py" and path.is_file():
            shutil.copy(path, folder)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mkv").write_text("not a video")
    (folder / "cut.mp4").write_bytes((clips / "h264_bframes.mp4").read_bytes()[:2000])
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the other processes of a test: with more, sums are rounded otherwise."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for all jobs of a file; `jobs.run` uses one that is there."""
    with connected(None):
        yield
