"""One filesystem layer for local paths and object stores: pyarrow.fs."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.errors import SpecError, StorageError

# By what an input is known again: its size and modification time, or a hash of all its bytes.
Identity = Literal["modified", "content"]
READ_BYTES = 8 << 20
REQUESTS_AT_ONCE = 16  # an object store answers each after some 20 ms
# A store that is out of order is asked again, less and less often, for about half a minute.
S3_ATTEMPTS = 8
# What is said when that was in vain, and says nothing of the object: S3 as Arrow reports it, then others.
OUT_OF_ORDER = re.compile(
    r"AWS Error (SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|REQUEST_TIMEOUT"
    r"|NETWORK_CONNECTION)|HTTP status (429|5\d\d)|curlCode|UNAVAILABLE|DEADLINE_EXCEEDED"
)
REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "have the quota raised",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}


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
        with self._answering():
            return self.filesystem.get_file_info(self.path)

    def open(self) -> io.RawIOBase:
        """To read from, and to seek in."""
        with self._answering():
            return _Reading(self, self.filesystem.open_input_file(self.path))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Raise StorageError instead of an error that says that the store is out of order."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            if self.is_local or not OUT_OF_ORDER.search(str(error)):
                raise
            raise self._trouble("read", error) from error

    def _trouble(self, what: str, error: BaseException) -> StorageError:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else " ".join(str(error).split()) or type(error).__name__
        remedy = REMEDIES.get(number or 0, "put that right")
        then = "run the same command again, which goes on from there"
        return StorageError(f"{self.path}: cannot be {what} ({reason}); {remedy}, and {then}")

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


class _Reading(io.RawIOBase):
    """An open file of a store. One that fails stays failed, as decoders may pass over a single error."""

    def __init__(self, location: Location, file: pa.NativeFile):
        self._location, self._file = location, file
        self._error: StorageError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._error is not None:
            raise self._error
        try:
            with self._location._answering():
                return self._file.readinto(buffer)
        except StorageError as error:
            self._error = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


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
    if isinstance(filesystem, pafs.S3FileSystem):
        filesystem = _patient(filesystem)
    return Location(filesystem, f"{base}/{key}".rstrip("/"))


def _patient(filesystem: pafs.S3FileSystem) -> pafs.S3FileSystem:
    """The same with AWS's standard retries, and one put, not three requests, for an object of a few MB."""
    options = filesystem.__reduce__()[1][0]  # as the URI said; there is no other way to ask for them
    if "allow_delayed_open" in options:
        options = {**options, "allow_delayed_open": True}
    retries = pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS)
    return pafs.S3FileSystem(**options, retry_strategy=retries)


def _absolute(path: str) -> str:
    """Without "." and ".."; links stay as they are, which Path.resolve would follow."""
    return os.path.abspath(path)  # noqa: PTH100


def version(info: pafs.FileInfo, *, local: bool) -> str:
    """What tells two contents of one file apart without reading them: size and modification time.

    Of an object store's times only the seconds: some list fractions that they do not tell of one object.
    """
    return f"{info.size}-{info.mtime_ns or 0}" if local else f"{info.size}-{(info.mtime_ns or 0) // 10**9}"


def version_of(place: Location, identity: Identity) -> str | None:
    """What a file's content is known by; None if there is no such file."""
    info = place.info()
    if not info.is_file:
        return None
    if identity == "modified":
        return version(info, local=place.is_local)
    digest = hashlib.sha256()
    with place.filesystem.open_input_stream(place.path) as stream:
        while some := stream.read(READ_BYTES):
            digest.update(some)
    return f"sha256-{digest.hexdigest()}"


@dataclass(frozen=True)
class Written:
    """What `write_atomic` wrote, for a commit record."""

    size_bytes: int
    sha256: str


class _Hashing:
    """A binary sink that counts and hashes what passes through it."""

    closed = False

    def __init__(self, sink: Any, target: Location):
        self._sink, self._target = sink, target
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        with written(self._target):
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

    Raises:
        StorageError: it cannot be written there.
    """
    if not target.is_local:
        buffer = pa.BufferOutputStream()
        yield _Hashing(buffer, target)
        with written(target), target.filesystem.open_output_stream(target.path) as stream:
            stream.write(buffer.getvalue())
        return
    path = Path(target.path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with written(target):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("wb")
    try:
        yield _Hashing(file, target)
        with written(target):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            temporary.replace(path)
    finally:
        with suppress(OSError):  # what it could not write before, it cannot write now
            file.close()
        with suppress(OSError):  # where nothing can be written, nothing may be removed; a rerun does that
            temporary.unlink(missing_ok=True)
    with written(target):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def written(target: Location) -> Iterator[None]:
    """Name the file in what goes wrong with writing it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise target._trouble("written", error) from error


@contextmanager
def streamed_file(target: Location) -> Iterator[_Hashing]:
    """A file of any size that something else vouches for: an error may tear it where it is not local."""
    if target.is_local:
        with atomic_file(target) as sink:
            yield sink
        return
    with written(target):
        stream = target.filesystem.open_output_stream(target.path)
    try:
        yield _Hashing(stream, target)
    finally:
        with written(target):
            stream.close()


def write_atomic(target: Location, data: bytes) -> Written:
    with atomic_file(target) as sink:
        sink.write(data)
    return sink.done()
