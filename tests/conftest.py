"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

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
