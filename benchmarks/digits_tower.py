"""A small CLIP-shaped image tower that knows digits: what the models with a frozen tower are given.

    python -m benchmarks.digits_tower FOLDER [--spec benchmarks/specs/digits_tower.yaml]

open_clip builds the tower; it learns on still digits of the training samples. A linear layer on its embedding
has to tell which digit there is, and where, how turned and how large, each to a few bins of its phase.
FOLDER/digits_tower.safetensors holds it as open_clip names it ("visual.*"). Takes minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import yaml
from pydantic import PositiveFloat, PositiveInt
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import digits
from models import clip_weights
from models.clip import Clip
from models.config import ClipConfig
from models.tokenizer import MEAN, STD
from models.towers import Tower, tower
from models.weights import HEAD, fit
from pipeline.plan import Frozen

SPEC = Path(__file__).parent / "specs" / "digits_tower.yaml"
# What is asked of an embedding, and how many answers there are.
QUESTIONS = {"digit": 10, "across": 8, "down": 8, "turn": 8, "zoom": 4}


class Spec(Frozen):
    """How a tower is made; the same spec on the same machine makes the same one."""

    arch: str
    seed: int
    steps: PositiveInt
    batch: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: PositiveFloat


def load(path: Path = SPEC) -> Spec:
    return Spec.model_validate_json(json.dumps(yaml.safe_load(path.read_text())))


def stills(first: int, count: int, split: digits.Split, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, 64, 64, 3) and int64 (count, questions): still digits and what is to be said of them."""
    scenes = [digits.draw(number, split, seed, still=True) for number in range(first, first + count)]
    bins = np.array(list(QUESTIONS.values())[1:])
    answers = [[scene.digit, *(scene.phases[0] * bins).astype(np.int64)] for scene in scenes]
    return np.concatenate([digits.paint(scene) for scene in scenes]), np.array(answers, dtype=np.int64)


def arch(spec: Spec) -> Path:
    """open_clip's config file of the tower; a relative path starts from the project's folder."""
    return Path(__file__).parent.parent / spec.arch


class Examinee(nn.Module):
    """open_clip's image tower, and one linear layer that answers all questions."""

    def __init__(self, config: Path) -> None:
        super().__init__()
        open_clip.add_model_config(config)
        self.visual = open_clip.create_model(config.stem).visual
        self.answer = nn.Linear(self.visual.output_dim, sum(QUESTIONS.values()))

    def embed(self, pictures: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) -> the tower's embeddings."""
        x_BHWC = (torch.from_numpy(pictures).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        return self.visual(x_BHWC.movedim(-1, 1))

    def forward(self, pictures: np.ndarray) -> list[Tensor]:
        """uint8 (B, H, W, 3) -> logits of each question."""
        return list(self.answer(self.embed(pictures)).split(list(QUESTIONS.values()), dim=1))


def train(spec: Spec, say: Console) -> Examinee:
    torch.manual_seed(spec.seed)
    model = Examinee(arch(spec))
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
    warm = max(1, spec.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * k / spec.steps))
    )
    begun = time.monotonic()
    for step in range(spec.steps):
        pictures, wanted = stills(step * spec.batch, spec.batch, "train", spec.seed)
        logits, answers = model(pictures), torch.from_numpy(wanted)
        losses = [functional.cross_entropy(x, y) for x, y in zip(logits, answers.T, strict=True)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 249:
            say.print(f"step {step + 1}: loss {loss.item():.2f}, {time.monotonic() - begun:.0f} s")
    return model.eval()


def examine(model: Examinee, seed: int, count: int = 2000) -> dict[str, float]:
    """The share of right answers on held-out digits."""
    pictures, answers = stills(0, count, "held-out", seed)
    with torch.inference_mode():
        logits = model(pictures)
    return {
        name: (x.argmax(1).numpy() == y).mean()
        for name, x, y in zip(QUESTIONS, logits, answers.T, strict=True)
    }


def weights(folder: Path, spec: Spec | None = None) -> Path:
    """The file of the tower's weights; it is made if it is not there."""
    path = folder / "digits_tower.safetensors"
    if path.is_file():
        return path
    spec, say = spec or load(), Console()
    model = train(spec, say)
    for name, share in examine(model, spec.seed).items():
        say.print(f"{name}: {share:.1%} of held-out digits right (chance {1 / QUESTIONS[name]:.1%})")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"visual.{name}": x.contiguous() for name, x in model.visual.state_dict().items()}, path)
    return path


def arch_of(spec: Spec | None = None) -> Tower:
    """The tower as our models take it."""
    return tower(str(arch(spec or load())))


def fill(clip: Clip, folder: Path) -> None:
    """Give a model's frozen tower the trained weights, which are made if they are not there."""
    state = clip_weights.state(ClipConfig(arch=clip.tower.arch, pretrained=str(weights(folder))))
    fit({name: x for name, x in clip.state_dict().items() if not name.startswith(HEAD)}, state, str(folder))
    clip.load_state_dict(state, strict=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--spec", type=Path, default=SPEC)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    Console().print(weights(arguments.folder, load(arguments.spec)))


if __name__ == "__main__":
    main()
