"""A process apart: what happens in there does no harm here, and it can be asked again."""

from __future__ import annotations

import os
import time

import pytest
from deadly import kill, pid, throw

from jobs.apart import Apart, CrashedError
from pipeline.errors import SpecError
from pipeline.stages import peak_memory_bytes


def test_it_answers_dies_hangs_refuses_and_goes_on() -> None:
    with Apart() as apart:
        first = apart.ask(60, pid)
        assert first not in (os.getpid(), None)
        assert apart.ask(60, pid) == first
        with pytest.raises(CrashedError):
            apart.ask(60, kill)
        second = apart.ask(60, pid)
        assert second != first
        with pytest.raises(TimeoutError, match="longer than 0 s"):
            apart.ask(0.2, time.sleep, 600)
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)  # nothing of it is left
        # What says something of the machine has to come back as it is.
        with pytest.raises(SpecError, match="a = 'b': c"):
            apart.ask(60, throw, SpecError("a", "b", "c"))
        assert apart.ask(60, peak_memory_bytes) > 1 << 20
        last = apart.ask(60, pid)
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)
