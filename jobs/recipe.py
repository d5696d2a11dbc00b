"""What the spec of a training job may say: its data, and how a model learns from it."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from jobs.clips import Clips, Data, Fraction, at_home
from jobs.logs import Logs
from jobs.model import Precision, Weighted, clip_at_home
from jobs.room import Labels
from jobs.terms import Contrast, Distill
from pipeline.limits import Limits
from pipeline.order import shares
from pipeline.plan import Frozen

# Models whose weights FSDP can share out: others have layers that take their turns inside frozen blocks.
SHARED_OUT = ("tubevit-", "vivit-")


class Optimizer(Frozen):
    """How weights follow gradients.

    warm_up_steps: from 0 to the full rate; then a cosine to 0 at the last step.
    weight_decay: of weight matrices; gates, positions, norms and biases have none.
    layer_decay: what each layer's rate is multiplied with, once for every layer above it.
    freeze: names of parameters that stay as they are, beside those that the model freezes; * fits anything.
    clip_norm: the longest that the gradient of all weights may be.
    ema: the decay of a moving average of the weights, which then is what is tested and saved.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: PositiveFloat
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 0.0
    warm_up_steps: NonNegativeInt = 0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    clip_norm: PositiveFloat | None = 1.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    freeze: tuple[str, ...] = ()

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warm_up_steps:
            return self.learning_rate * (step + 1) / self.warm_up_steps
        done = (step - self.warm_up_steps) / max(1, steps - self.warm_up_steps)
        return self.learning_rate * (0.5 + 0.5 * math.cos(math.pi * done))

    def freezes(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.freeze)


class Augment(Frozen):
    """What is done to the tubes of a clip each time it is seen; a seed, the step and its place decide.

    flip: how often it is mirrored. Labels stay: not for classes that tell left from right.
    brightness, contrast, saturation: by a factor of 1 - x to 1 + x.
    erase: how often a box in space and time is blanked; its share of the clip is up to a third.
    mixup, cutmix: parameters of the Beta distribution that clips are blended by, or boxes exchanged; with
        both, either, as often.
    """

    flip: Fraction = 0.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    erase: Fraction = 0.0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0

    @property
    def together(self) -> int:
        """How many clips must not be parted: those that are mixed are so in pairs."""
        return 2 if self.mixup or self.cutmix else 1


class Recipe(Frozen):
    """How long, in which batches, and by which rules.

    steps: optimizer steps. batch: clips of all datasets in one, on all workers.
    accumulate: parts that a worker's share of a batch is worked through in.
    label_smoothing: of the cross-entropy (arXiv:1512.00567). multi_label: any number of labels a clip, each
        with a sigmoid of its own.
    contrast, distill: losses beside it; None is without.
    """

    steps: PositiveInt
    batch: PositiveInt
    optimizer: Optimizer
    accumulate: PositiveInt = 1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    multi_label: bool = False
    contrast: Contrast | None = None
    distill: Distill | None = None
    augment: Augment = Augment()
    seed: NonNegativeInt = 0


class Strategy(Frozen):
    """How the work is laid out; none of it changes what is learned.

    parallel: ddp holds all weights on every worker, fsdp shares them out (FSDP2).
    precision: auto is bf16 on a GPU and fp32 on a CPU. recompute: activation checkpointing.
    deterministic: the same spec gives the same bits; slower on a GPU.
    """

    parallel: Literal["ddp", "fsdp"] = "ddp"
    precision: Precision = "auto"
    recompute: bool = False
    compile: bool = False
    deterministic: bool = False


class Checkpoints(Frozen):
    """every_steps: what a restart may lose. keep: so many of the last ones."""

    every_steps: PositiveInt = 500
    keep: PositiveInt = 2


class Validation(Frozen):
    """data: of training's heads, by their names. every_steps: None is at the end alone."""

    data: dict[str, Clips] = Field(default_factory=dict)
    every_steps: PositiveInt | None = None
    batch: PositiveInt = 64


class TrainWorkers(Frozen):
    """workers: processes; (least, most) lets a cluster decide.

    cpus, gpus: of each; gpus left out is one, if there are any.
    labels: of the cluster's nodes that they run on.
    """

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    cpus: PositiveFloat = 1.0
    gpus: NonNegativeFloat | None = None
    labels: Labels = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"workers = {self.workers}: the least number comes first")
        return self

    @property
    def least(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Decoding(Frozen):
    """actors: videos decoded at a time, for all workers together; None is what there is room for.

    labels: of the cluster's nodes that do it.
    """

    actors: PositiveInt | None = None
    labels: Labels = Field(default_factory=dict)


class LearnWorkers(TrainWorkers):
    """decode: the videos of datasets that name some, beside the workers, with a core each."""

    decode: Decoding = Decoding()


class Learning(Frozen):
    """All that a training process has to know; the spec of a job, but for where it runs.

    limits: of a video that is decoded for a step.
    """

    data: Annotated[dict[str, Data], Field(min_length=1)]
    model: Weighted
    recipe: Recipe
    strategy: Strategy = Strategy()
    checkpoints: Checkpoints = Checkpoints()
    validation: Validation = Validation()
    resources: LearnWorkers = LearnWorkers()
    limits: Limits = Limits(timeout_seconds=120.0)
    logs: Logs = Logs()

    @model_validator(mode="after")
    def _shared_out(self) -> Self:
        try:
            self.shares()
        except ValueError as error:
            parts = f"recipe.accumulate {self.recipe.accumulate}, resources.workers {self.resources.workers}"
            raise ValueError(f"recipe.batch = {self.recipe.batch} with {parts}: {error}") from None
        if self.strategy.parallel == "fsdp" and not self.model.name.startswith(SHARED_OUT):
            problem = f"only {' and '.join(f'{name}*' for name in SHARED_OUT)} so far; take ddp"
            raise ValueError(f"strategy.parallel = 'fsdp' with {self.model.name}: {problem}")
        if self.recipe.multi_label and self.validation.data:
            raise ValueError("validation.data: of any number of labels are tested by a job of kind evaluate")
        trained = {self.head(name) for name in self.data}
        strangers = [
            f"{name} (head {head})"
            for name in self.validation.data
            if (head := self.test_head(name)) not in trained
        ]
        if strangers:
            there = ", ".join(sorted(trained))
            raise ValueError(f"validation.data: no such head is trained: {strangers[0]}; there are {there}")
        return self

    @property
    def decodes(self) -> bool:
        """Whether any of its clips come straight from videos."""
        return any(one.source == "videos" for one in (*self.data.values(), *self.validation.data.values()))

    def shares(self) -> dict[str, int]:
        """How many clips of each dataset are in a batch: the same number for every worker there may be."""
        every_count = math.lcm(*range(self.resources.least, self.resources.most + 1))
        weights = [data.weight for data in self.data.values()]
        least = every_count * self.recipe.accumulate * self.recipe.augment.together
        counts = shares(weights, self.recipe.batch, least)
        return dict(zip(self.data, counts, strict=True))

    def head(self, name: str) -> str:
        """The label space of a dataset that is learned from."""
        return self.data[name].head or name

    def test_head(self, name: str) -> str:
        """That of a test set: of the dataset of its name, if it does not say."""
        return self.validation.data[name].head or (self.head(name) if name in self.data else name)

    def absolute(self) -> Self:
        """The same with paths that mean the same in every process of this machine."""

        validation = self.validation.model_copy(update={"data": at_home(self.validation.data)})
        given = {"data": at_home(self.data), "model": self.model.absolute(), "validation": validation}
        contrast = self.recipe.contrast
        if contrast is not None and contrast.clip is not None:
            tower = contrast.clip.model_copy(
                update=clip_at_home(contrast.clip.arch, contrast.clip.pretrained)
            )
            contrast = contrast.model_copy(update={"clip": tower})
            given["recipe"] = self.recipe.model_copy(update={"contrast": contrast})
        return self.model_copy(update=given)


class Testing(Frozen):
    """All that a process of an evaluation has to know.

    model: its checkpoint is what is tested, by the classes that it was trained on. batch: views at a time.
    data: each is recognised by the head of its name, or the one that it names, or the only one.
    """

    data: Annotated[dict[str, Clips], Field(min_length=1)]
    model: Weighted
    batch: PositiveInt = 64
    multi_label: bool = False
    precision: Precision = "auto"
    resources: TrainWorkers = TrainWorkers()

    @model_validator(mode="after")
    def _trained(self) -> Self:
        if self.model.checkpoint is None:
            raise ValueError("model.checkpoint is missing: name the folder of a trained model (RUN/model)")
        for name, one in self.data.items():
            if one.source == "videos":
                raise ValueError(f"data.{name}.videos: an evaluation reads shards; run a job of kind shard")
        return self

    def absolute(self) -> Self:
        """The same with paths that mean the same in every process of this machine."""
        return self.model_copy(update={"data": at_home(self.data), "model": self.model.absolute()})
