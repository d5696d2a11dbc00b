"""The contract that every model keeps, whatever it is made of."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from models.config import Classes, ModelConfig
from models.heads import classifier, classify
from models.tokenizer import TubeTokenizer
from models.transformer import Layer
from pipeline.plan import Plan


class Model(nn.Module):
    """Tubes in, embeddings or logits out.

    `plan` is what clips are cut by; `image_plan` what still images are, None if the model takes none;
    `dim` the embedding's width; `config` what `models.create` made it from, None if it did not.
    """

    def __init__(self, plan: Plan, image_plan: Plan | None, dim: int, num_classes: Classes | None) -> None:
        super().__init__()
        self.plan = plan
        self.image_plan = image_plan
        self.dim = dim
        self.config: ModelConfig | None = None
        self.head: nn.Module | None = classifier(dim, num_classes)

    @property
    def plans(self) -> list[Plan]:
        """What a batch may have been cut by."""
        return [plan for plan in (self.plan, self.image_plan) if plan is not None]

    @property
    def tokens(self) -> int:
        """How many tokens a clip is turned into."""
        return sum(module.tokens for module in self.modules() if isinstance(module, TubeTokenizer))

    def embed(self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None) -> Tensor:
        """{tube: uint8 (B, n_t, n_h, n_w, kT, kH, kW, 3)} -> float32 (B, dim), also under autocast.

        The tubes are all of `plan`, or all of `image_plan`; ValueError otherwise. `mirrored`, bool (B,),
        marks clips whose tubes were flipped after cutting, along n_w and kW.
        """
        raise NotImplementedError

    def forward(
        self, tubes: Mapping[str, Tensor], mirrored: Tensor | None = None, dataset: str | None = None
    ) -> Tensor:
        """Float32 logits (B, num_classes); takes what `embed` takes.

        `dataset` names the head where there are several. ValueError without such a head.
        """
        return classify(self.head, self.embed(tubes, mirrored), dataset)

    def train_only_heads(self) -> None:
        """A linear probe: nothing but the head learns from here on."""
        self.requires_grad_(False)
        if self.head is not None:
            self.head.requires_grad_(True)

    def recompute_activations(self, on: bool = True) -> None:
        """Switch activation checkpointing: the layers keep nothing for the backward pass but their input."""
        for module in self.modules():
            if isinstance(module, Layer):
                module.recompute = on
