"""One filesystem layer for local paths and object stores: pyarrow.fs."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.errors import SpecError


@dataclass(frozen=True)
class Location:
    """A file or folder: a pyarrow filesystem and a path on it."""

    filesystem: pafs.FileSystem
    path: str

    def __truediv__(self, name: str) -> Location:
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}")

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def info(self) -> pafs.FileInfo:
        return self.filesystem.get_file_info(self.path)

    def exists(self) -> bool:
        return self.info().type != pafs.FileType.NotFound

    def read_bytes(self) -> bytes:
        with self.filesystem.open_input_stream(self.path) as stream:
            return stream.read()

    def files(self, *, recursive: bool = False) -> list[pafs.FileInfo]:
        """What lies under this folder, but for folders, by path: dangling links and pipes, too."""
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        found = [i for i in self.filesystem.get_file_info(selector) if i.type != pafs.FileType.Directory]
        return sorted(found, key=lambda info: info.path)

    def delete(self) -> None:
        self.filesystem.delete_file(self.path)


def locate(uri: str, field: str = "uri") -> Location:
    """A local path (`~` expands, any characters are fine) or a URI such as s3://bucket/key.

    A URI's query configures its filesystem, e.g. s3://bucket/key?endpoint_override=http://host:9000.
    package://name/folder is a file that an installed Python package ships; the package is not imported.
    """
    if "://" not in uri:
        return Location(pafs.LocalFileSystem(), _absolute(os.path.expanduser(uri)))  # noqa: PTH111 (Path makes "./~" a "~")
    scheme, rest = uri.split("://", 1)
    rest, _, query = rest.partition("?")
    bucket, _, key = rest.partition("/")
    if scheme == "file":
        return Location(pafs.LocalFileSystem(), _absolute(f"/{key}"))
    if scheme == "package":
        found = importlib.util.find_spec(bucket) if bucket.isidentifier() else None
        if found is None or not found.submodule_search_locations:
            raise SpecError(field, uri, f"no Python package {bucket!r} is installed; pip install it")
        return Location(pafs.LocalFileSystem(), str(Path(found.submodule_search_locations[0]) / key))
    try:
        # Only the bucket is parsed as a URI: keys may hold spaces, percent signs and quotes.
        filesystem, base = pafs.FileSystem.from_uri(f"{scheme}://{bucket}" + (f"?{query}" if query else ""))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SpecError(field, uri, f"no filesystem for it ({error}); use a path, s3:// or gs://") from None
    return Location(filesystem, f"{base}/{key}".rstrip("/"))


def _absolute(path: str) -> str:
    """Without "." and ".."; links stay as they are, which Path.resolve would follow."""
    return os.path.abspath(path)  # noqa: PTH100


def version(info: pafs.FileInfo, *, local: bool) -> str:
    """What tells two contents of one file apart without reading them: size and modification time.

    Of an object store's times only the seconds: some list fractions that they do not tell of one object.
    """
    return f"{info.size}-{info.mtime_ns or 0}" if local else f"{info.size}-{(info.mtime_ns or 0) // 10**9}"


@dataclass(frozen=True)
class Written:
    """What `write_atomic` wrote, for a commit record."""

    size_bytes: int
    sha256: str


class _Hashing:
    """A binary sink that counts and hashes what passes through it."""

    closed = False

    def __init__(self, sink: Any):
        self._sink = sink
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        self._sink.write(data)
        self._sha256.update(data)
        size = memoryview(data).nbytes
        self.size_bytes += size
        return size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def done(self) -> Written:
        return Written(self.size_bytes, self._sha256.hexdigest())


@contextmanager
def atomic_file(target: Location) -> Iterator[_Hashing]:
    """A file that is there whole or not at all; `done()` on what is yielded gives size and checksum.

    Local: temporary name in the same folder, fsync, rename, fsync of the folder. Elsewhere: held in
    memory and put as one object, because a stream that is closed by an error would leave a torn one.
    """
    if not target.is_local:
        buffer = pa.BufferOutputStream()
        sink = _Hashing(buffer)
        yield sink
        with target.filesystem.open_output_stream(target.path) as stream:
            stream.write(buffer.getvalue())
        return
    path = Path(target.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield _Hashing(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def streamed_file(target: Location) -> Iterator[Any]:
    """A file of any size that something else vouches for: an error may tear it where it is not local."""
    if target.is_local:
        with atomic_file(target) as sink:
            yield sink
    else:
        with target.filesystem.open_output_stream(target.path) as sink:
            yield sink


def write_atomic(target: Location, data: bytes) -> Written:
    with atomic_file(target) as sink:
        sink.write(data)
    return sink.done()
