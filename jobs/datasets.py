"""Where the clips of a spec come from, shards or videos, and what they are to a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jobs.clips import Clips
from jobs.model import Weighted
from jobs.recipe import Learning
from pipeline.batches import Dataset, LiveDataset
from pipeline.corpus import Media
from pipeline.errors import SpecError
from pipeline.limits import Limits
from pipeline.live import Listing, Videos
from pipeline.plan import Plan
from pipeline.sampling import Sampling
from pipeline.shards import ShardSet, require, shard_files
from pipeline.storage import locate


@dataclass(frozen=True)
class Stored:
    """Shards; `field` is what the spec calls them."""

    field: str
    data: Clips
    shards: ShardSet

    @classmethod
    def of(cls, field: str, data: Clips) -> Stored:
        """SpecError if there are none, or several sets of them."""
        return cls(field, data, open_set(data.path, f"{field}.shards"))

    @property
    def sampling(self) -> Sampling:
        return self.shards.sampling

    @property
    def media(self) -> Media:
        """Images are cut as the first frame of clips would be."""
        still = self.shards.plan.clip_frames == 1 and self.sampling.frames > 1
        return "image" if still else "video"

    def dataset(self, model: Weighted, sampling: Sampling) -> Dataset:
        """Its clips as a model sees them that is made for a sampling.

        Raises:
            SpecError: the model takes no images; or shards lack its tubes, or are of another size.
        """
        wanted = _plan(self, model, sampling)
        require(self.shards.plan, wanted, self.data.path, f"{self.field}.shards")
        return Dataset(self.field, self.shards.files, wanted, self.data.split)


@dataclass(frozen=True)
class Listed:
    """Videos, or images, as they were listed; `field` is what the spec calls them."""

    field: str
    data: Clips
    listing: Listing
    limits: Limits

    @classmethod
    def of(cls, field: str, data: Clips, limits: Limits, run: Path | None) -> Listed:
        """By the list that a run has kept, if it has. SpecError if there is nothing to list."""
        kept = None if run is None else _kept(run, field)
        if kept is not None and kept.exists():
            return cls(field, data, Listing.read(str(kept)), limits)
        return cls(field, data, Listing.of(data.path, f"{field}.videos"), limits)

    @property
    def sampling(self) -> Sampling:
        return self.data.sampling or Sampling()

    @property
    def media(self) -> Media:
        return self.listing.media

    def dataset(self, model: Weighted, sampling: Sampling) -> LiveDataset:
        """Its clips as a model sees them that is made for a sampling.

        Raises:
            SpecError: the model takes no images; or they are sampled at another size, or in other numbers.
        """
        wanted = _plan(self, model, sampling)
        if model.plans(self.sampling)[self.media] != wanted:
            both = [f"{s.frames} frames of {s.height_px}x{s.width_px} px" for s in (self.sampling, sampling)]
            problem = f"gives {both[0]} ({self.sampling.filter}), but the model is made for {both[1]}"
            remedy = f"({sampling.filter}); make them equal"
            raise SpecError(f"{self.field}.sampling", self.data.path, f"{problem} {remedy}")
        videos = Videos(self.listing, self.sampling, wanted, self.limits)
        return LiveDataset(self.field, videos, self.data.split)


Place = Stored | Listed


def places(spec: Learning, run: Path | None = None) -> dict[str, Place]:
    """Where all clips of a training job come from, by what its spec calls them.

    Raises:
        SpecError: nothing is there.
    """
    return {
        field: Stored.of(field, one) if one.source == "shards" else Listed.of(field, one, spec.limits, run)
        for field, one in _fields(spec).items()
    }


def keep_lists(spec: Learning, run: Path) -> None:
    """Have the videos of a spec listed in the run's folder: clips are numbered as they are there."""
    for field, one in _fields(spec).items():
        kept = _kept(run, field)
        if one.source == "videos" and not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            Listing.of(one.path, f"{field}.videos").write(str(kept))


def _fields(spec: Learning) -> dict[str, Clips]:
    tests = {f"validation.data.{name}": one for name, one in spec.validation.data.items()}
    return {**{f"data.{name}": one for name, one in spec.data.items()}, **tests}


def _kept(run: Path, field: str) -> Path:
    return run / "videos" / f"{field}.arrow"


def sampling_of(found: Iterable[Place], model: Weighted) -> Sampling:
    """How the clips are sampled that the model is made for: the first videos, if there are any.

    Raises:
        SpecError: the model cannot be made for it.
    """
    first = sorted(found, key=lambda place: place.media == "image")[0]
    model.plans(first.sampling, f"{first.field}.sampling")
    return first.sampling


def open_set(folder: str, field: str) -> ShardSet:
    """The one set of a shard job's output folder, or of a set's own. SpecError if there are several."""
    place = locate(folder, field)
    if not place.is_local:
        raise SpecError(field, folder, "training maps its shards: copy them to a disk of every worker")
    found = shard_files(place)
    if len(found) > 1:
        which = " or ".join(f"{folder}/shards/{name}" for name in found)
        raise SpecError(field, folder, f"holds several sets; name one: {which}")
    return ShardSet(next(iter(found.values())))


def _plan(place: Place, model: Weighted, sampling: Sampling) -> Plan:
    """What a model that is made for a sampling looks at in such clips."""
    wanted = model.plans(sampling).get(place.media)
    if wanted is None:
        problem = f"holds images, and {model.name} takes none"
        raise SpecError(f"{place.field}.{place.data.source}", place.data.path, problem)
    return wanted
