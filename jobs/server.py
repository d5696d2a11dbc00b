"""A cluster's job server (Ray Jobs): reaching it, with its token, and what it may answer instead."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import SpecError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS = "RAY_API_SERVER_ADDRESS"
POLL_SECONDS = 1.0
OUTAGE_SECONDS = 60.0  # a server that is watched may be out of reach for so long

Answer = TypeVar("Answer")


class UnansweredError(SpecError):
    """The server is out of reach or out of order, but may not remain so."""


def connect(address: str | None = None) -> JobSubmissionClient:
    """A client of a cluster's job server.

    Args:
        address: http://HEAD:8265; None is RAY_API_SERVER_ADDRESS.

    Raises:
        SpecError: none is named, none answers there, or it wants a token (RAY_AUTH_TOKEN, or the file that
            RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token).
    """
    before = os.environ.get(ADDRESS)
    address = address or before
    if not address:
        problem = f"name the cluster's job server, as http://HEAD:8265, or set {ADDRESS}"
        raise SpecError("--address", address, problem)
    address = address if "://" in address else f"http://{address}"
    from ray.job_submission import JobSubmissionClient

    for talkative in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    with answering(address):
        os.environ[ADDRESS] = address  # which counts for more than an argument, and so does RAY_ADDRESS
        try:
            return JobSubmissionClient(address, headers=authorization())
        finally:
            del os.environ[ADDRESS]
            if before is not None:
                os.environ[ADDRESS] = before


def authorization() -> dict[str, str]:
    """The header that says who asks. Ray itself reads its environment only once, when it is imported."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not token and file.is_file():
        token = file.read_text()
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


@contextmanager
def answering(address: str) -> Iterator[None]:
    """Raise SpecError instead of what a job server, or the lack of one, leads to."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except SpecError:
        raise
    except AuthenticationError:
        what = "wants another token than it was given" if authorization() else "wants a token"
        remedy = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH (a file), to that of its head"
        raise SpecError("--address", address, f"the job server {what}; {remedy}") from None
    except (OSError, RuntimeError, ValueError) as error:
        # A refusal holds the server's traceback, and its last line the reason.
        lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line))]
        reason = (lines or [type(error).__name__])[-1]
        what = "no job server answers there" if isinstance(error, OSError) else "the job server refused"
        passes = isinstance(error, OSError) or "status code 5" in str(error)
        told = UnansweredError if passes else SpecError
        raise told("--address", address, f"{what} ({reason})") from None


def patiently(ask: Callable[[], Answer]) -> Answer:
    """What a server answers that may be out of reach for a while: jobs take longer than connections last."""
    deadline = time.monotonic() + OUTAGE_SECONDS
    while True:
        try:
            return ask()
        except UnansweredError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
