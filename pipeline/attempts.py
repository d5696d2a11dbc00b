"""How often a unit was begun, kept beside it: the only retry logic of our own (contract C7).

Ray begins a unit again when its worker dies. From the second time on each input is noted before it is
decoded, so that one which kills its decoder again and again is told from its neighbours and left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from pipeline.commits import Run
from pipeline.storage import write_atomic


@dataclass
class Attempts:
    """One unit's counter. Deaths count within one run of the job only: killing a job is no input's fault."""

    run: Run
    unit: int
    session: str
    starts: int = 0
    deaths: dict[str, int] = field(default_factory=dict)

    def begin(self) -> Attempts:
        """Count this start, and the death of the input that was being decoded when the last one ended."""
        if self._place.exists():
            try:
                noted = json.loads(self._place.read_bytes())
            except json.JSONDecodeError:
                noted = {}
            if noted.get("session") == self.session:
                self.starts = noted["starts"]
                self.deaths = noted["deaths"]
                if noted["at"] is not None:
                    self.deaths[noted["at"]] = self.deaths.get(noted["at"], 0) + 1
        self.starts += 1
        self._write(None)
        return self

    def deaths_of(self, item: int) -> int:
        return self.deaths.get(str(item), 0)

    def note(self, item: int) -> None:
        """Item number `item` of the unit is about to be decoded."""
        if self.starts > 1:
            self._write(str(item))

    def end(self) -> None:
        """The unit is committed."""
        if self._place.exists():
            self._place.delete()

    @property
    def _place(self):
        return self.run.place / f"attempts/{self.run.name(self.unit)}.json"

    def _write(self, at: str | None) -> None:
        noted = {"session": self.session, "starts": self.starts, "deaths": self.deaths, "at": at}
        write_atomic(self._place, json.dumps(noted).encode())
