"""What a cluster has for the workers of a job, and which of its nodes they may run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from pipeline.errors import SpecError

# The names and plain values that Ray's own labels may have.
_Key = Annotated[str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")]
_Value = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")]
Labels = dict[_Key, _Value]


@dataclass(frozen=True)
class Node:
    """A node that workers can run on."""

    cpus: float
    gpus: float
    labels: Mapping[str, str]

    def has(self, labels: Mapping[str, str]) -> bool:
        return labels.items() <= self.labels.items()


@dataclass(frozen=True)
class Room:
    """What there is for the workers of a job.

    cpus: all but one of the cluster's, which is for Ray's own small tasks.
    may_grow: more nodes may come than there are now.
    places: the nodes; None on a machine alone, where labels have nothing to choose from.
    """

    nodes: int
    cpus: float
    gpus: float
    may_grow: bool = False
    places: tuple[Node, ...] | None = None

    @classmethod
    def of(cls, places: Sequence[Node], may_grow: bool) -> Room:
        """The room on these nodes."""
        cpus = sum(place.cpus for place in places)
        working = sum(1 for place in places if place.cpus)
        gpus = sum(place.gpus for place in places)
        return cls(max(1, working), max(1.0, cpus - 1), gpus, may_grow, tuple(places))

    def where(self, labels: Mapping[str, str]) -> Room:
        """The room on the nodes that have these labels."""
        if self.places is None or not labels:
            return self
        here = [place for place in self.places if place.has(labels)]
        cpus = max(1.0, min(self.cpus, sum(place.cpus for place in here)))
        return replace(Room.of(here, self.may_grow), cpus=cpus)

    def chosen(self, labels: Mapping[str, str]) -> Mapping[str, str]:
        """The labels that a worker has to ask Ray for."""
        return {} if self.places is None else labels

    def apart(self, some: Mapping[str, str], others: Mapping[str, str]) -> bool:
        """Whether no node can have both labels, so that two pools do not share cores."""
        return self.places is not None and any(
            some[key] != others[key] for key in some.keys() & others.keys()
        )

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether there are nodes with these labels to choose from."""
        return bool(labels) and any(place.has(labels) for place in self.places or ())

    def missing(self, field: str, labels: Mapping[str, str]) -> str | None:
        """What to say where no node has these labels, but one may come; None if there is one.

        Raises:
            SpecError: none will come.
        """
        if self.places is None or not labels or self.has(labels):
            return None
        own = {written({key: value}) for place in self.places for key, value in place.labels.items()}
        there = ", ".join(sorted(label for label in own if not label.startswith("ray.io/"))) or "none"
        if not self.may_grow:
            problem = f"no node of this cluster has these labels (there are: {there}); name others, or none"
            raise SpecError(field, dict(labels), problem)
        return f"waiting for a node with {written(labels)} ({field}); labels there are now: {there}"


def written(labels: Mapping[str, str]) -> str:
    """Labels as `ray start --labels` takes them."""
    return ",".join(f"{key}={value}" for key, value in labels.items())
