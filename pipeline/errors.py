"""What can be wrong: what the user asked for, what a file turns out to hold, and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Why an input, or a clip of it, gave no row.
Reason = Literal[
    "unreadable",  # missing, no permission, not a media file
    "no_video",  # opens, but holds no picture stream that can be decoded
    "corrupt",  # breaks in mid-decode
    "too_large",  # more pixels, bytes or seconds than the limits allow
    "timeout",  # took longer than the limits allow
    "changed",  # no longer the file that was listed, by its size and modification time or by its content
    "too_short",  # fewer frames than the sampling asks for, and the end policy is "drop"
    "crashed",  # took its decoder process down, every time
    "out_of_memory",  # needed more of it than its worker could have
    "model_error",  # the model's output for it is not finite
]


Stage = Literal["open", "decode", "embed"]


class SpecError(ValueError):
    """A request that cannot be met. Its text is one line: the field, its value, and the way out."""

    def __init__(self, field: str, value: object, problem: str):
        super().__init__(field, value, problem)  # as they are, or it could not come back from a worker

    def __str__(self) -> str:
        field, value, problem = self.args
        return f"{field} = {value!r}: {problem}"


class SpecListError(SpecError):
    """Several of them at once, a line each."""

    def __init__(self, lines: list[str]):
        ValueError.__init__(self, lines)

    def __str__(self) -> str:
        return "\n".join(self.args[0])


class StorageError(Exception):
    """A place that cannot be written to, or a store that does not answer: a job's end, and no input's fault.

    Its text is one line: where, why, and the way out. What is committed stays.
    """


class MediaError(Exception):
    """An input, or a part of it, that gives no clips; becomes a row in `failures`."""

    def __init__(self, reason: Reason, message: str, position_seconds: float | None = None):
        super().__init__(message)
        self.reason: Reason = reason
        self.position_seconds = position_seconds


@dataclass(frozen=True)
class Failure:
    """One row of `failures` (contract C7): what was lost, where, and why.

    item: which of its unit's items it is about. rows: what that item gave all the same.
    worker: host and process that found it out.
    """

    uri: str
    stage: Stage
    reason: Reason
    message: str
    position_seconds: float | None = None
    clip: int | None = None
    attempts: int = 1
    item: int | None = None
    rows: int = 0
    worker: str | None = None


def failure_of(uri: str, error: Exception) -> Failure:
    """What decoding an input has raised, as its failure; raised again if it speaks of the machine."""
    if isinstance(error, SpecError | StorageError):
        raise error
    if isinstance(error, MediaError):
        stage: Stage = "open" if error.reason in {"unreadable", "changed"} else "decode"
        return Failure(uri, stage, error.reason, str(error), error.position_seconds)
    reason: Reason = "unreadable" if isinstance(error, OSError) else "corrupt"
    if isinstance(error, MemoryError):  # of the machine, perhaps: but not of its neighbours
        reason = "out_of_memory"
    return Failure(uri, "decode", reason, f"{type(error).__name__}: {' '.join(str(error).split())}")
