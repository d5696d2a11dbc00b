"""Small ViViTs on random tubes, and what they compute, written out."""

import math
from typing import get_args

import torch

from models import plans
from models.config import TubeConfig, Variant
from models.tokenizer import MEAN, STD
from models.vivit import ViViT
from pipeline.plan import Canvas, Plan

VARIANTS = get_args(Variant)
DIM, LAYERS, HEADS, PATCH = 24, 2, 4, 8
FRAMES, SIZE = 6, (16, 24)  # with tubelets of 2 frames: 3 times of 2 x 3 places


def tubelets(canvas: Canvas, size: tuple[int, int, int]) -> Plan:
    return plans.tubes(canvas, (TubeConfig(kernel=size, stride=size),))


def plan_of(tubelet: tuple[int, int, int] = (2, PATCH, PATCH), frames: int = FRAMES) -> Plan:
    return tubelets(plans.canvas(frames, SIZE, "area"), tubelet)


def frame_plan(every: int = 2) -> Plan:
    """Single frames, the paper's uniform sampling."""
    return plans.clip(plans.canvas(FRAMES, SIZE, "area"), PATCH, every)


def vivit(variant: Variant, plan: Plan | None = None, num_classes: int | None = None) -> ViViT:
    torch.manual_seed(0)
    return ViViT(
        plan or plan_of(), DIM, LAYERS, HEADS, variant=variant, temporal_layers=2, num_classes=num_classes
    ).eval()


def shaken(variant: Variant, plan: Plan | None = None) -> ViViT:
    """With every weight moved, so that none is zero or one."""
    model = vivit(variant, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def random_tubes(plan: Plan, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        tube.name: torch.randint(0, 256, (batch, *tube.shape), dtype=torch.uint8, generator=generator)
        for tube in plan.tubes
    }


def video(plan: Plan, tubes: dict[str, torch.Tensor]) -> torch.Tensor:
    """The normalised clip (B, 3, T, H, W) that dense tubes without gaps were cut from."""
    (tube,) = plan.tubes
    x = tubes[tube.name].permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, 3, n_t, kT, n_h, kH, n_w, kW)
    pixels = x.flatten(6, 7).flatten(4, 5).flatten(2, 3).float() / 255
    mean, std = (torch.tensor(value)[:, None, None, None] for value in (MEAN, STD))
    return (pixels - mean) / std


def plain_embedding(
    variant: str, state: dict[str, torch.Tensor], x_ND: torch.Tensor, times: int, places: int
) -> torch.Tensor:
    """One clip's embedding: all tokens in one sequence, and masks for what they may see."""
    table_ND = state["positional_embedding"]
    time, place = torch.arange(times * places) // places, torch.arange(times * places) % places
    same_time, same_place = time[:, None] == time, place[:, None] == place
    anything = torch.ones(1 + times * places, 1 + times * places, dtype=torch.bool)
    if variant == "joint":
        x_ND = torch.cat([state["class_embedding"][None], x_ND]) + table_ND[: 1 + len(x_ND)]
        return plain_encoder(state, "encoder.", x_ND, [anything] * HEADS)[0]
    if variant == "factorised_dot_product":
        masks = [same_time] * (HEADS // 2) + [same_place] * (HEADS // 2)
        return plain_encoder(state, "encoder.", x_ND + table_ND[: len(x_ND)], masks).mean(0)
    if variant == "factorised_self_attention":
        x_ND = x_ND + table_ND[: len(x_ND)]
        return plain_encoder(state, "encoder.", x_ND, [same_time] * HEADS, [same_place] * HEADS).mean(0)
    of_frames = []
    for t in range(times):
        frame = torch.cat([state["class_embedding"][None], x_ND[time == t]]) + table_ND
        of_frames.append(
            plain_encoder(state, "encoder.", frame, [anything[: len(frame), : len(frame)]] * HEADS)[0]
        )
    if variant == "frame_mean":
        return sum(of_frames[1:], of_frames[0]) / times
    z = torch.stack([state["temporal_class_embedding"], *of_frames])
    z = z + state["temporal_positional_embedding"][: len(z)]
    return plain_encoder(state, "temporal_encoder.", z, [anything[: len(z), : len(z)]] * HEADS)[0]


def plain_encoder(
    state: dict[str, torch.Tensor],
    prefix: str,
    x: torch.Tensor,
    masks: list[torch.Tensor],
    time_masks: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """(L, D) -> (L, D): pre-LN blocks, with a second attention where there are masks for it."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]

    def affine(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attention(name: str, x: torch.Tensor, masks: list[torch.Tensor]) -> torch.Tensor:
        q, k, v = affine(f"{name}.qkv", x).chunk(3, dim=-1)
        width, heads = DIM // HEADS, []
        for head, mask in enumerate(masks):
            own = slice(head * width, (head + 1) * width)
            scores = (q[:, own] @ k[:, own].T / math.sqrt(width)).masked_fill(~mask, -math.inf)
            heads.append(scores.softmax(-1) @ v[:, own])
        return affine(f"{name}.out", torch.cat(heads, dim=-1))

    def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    for i in range(sum(name.startswith(prefix) and name.endswith("norm1.weight") for name in state)):
        block = f"{prefix}blocks.{i}"
        x = x + attention(f"{block}.attention", norm(f"{block}.norm1", x), masks)
        if time_masks is not None:
            x = x + attention(f"{block}.attention_time", norm(f"{block}.norm_time", x), time_masks)
        hidden = tanh_gelu(affine(f"{block}.mlp.up", norm(f"{block}.norm2", x)))
        x = x + affine(f"{block}.mlp.down", hidden)
    return norm(f"{prefix}norm", x)
