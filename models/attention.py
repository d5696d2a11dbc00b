"""Where a model looks: how much each of its tokens weighs in the embedding of one clip.

The weights of the last step in which tokens are mixed, averaged over heads, of what the embedding is read
from. That is no proof of what a decision hangs on: a token of a late layer holds what others told it before.
Nothing in the models serves this: hooks record what their attention takes, and the weights are computed
again.

b sequences, K heads, Q queries, M tokens attended to, L tokens, D channels, N tokens of a clip, T times,
S places, F frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.aim import AIM
from models.clip import Clip
from models.dualpath import DualPath
from models.gated import Adapter, Gated
from models.grafted import Grafted
from models.model import Model
from models.st_adapter import STAdapter
from models.tokenizer import matching, merged_grid
from models.transformer import Block, CrossAttention, SelfAttention, split
from models.tubevit import TubeViT
from models.vivit import ViViT
from pipeline.plan import Plan, Sizes


@dataclass(frozen=True)
class Map:
    """What is drawn at once.

    about: a line that says whose attention it is.
    weights: {tube of the plan: float32 (n_t, n_h, n_w)}, none negative; 1 together. Where a model has no
        token of a tube, or of some of its places, it is missing, or 0 there.
    """

    about: str
    weights: dict[str, Tensor]


def attention(model: Model, tubes: Mapping[str, Tensor]) -> dict[str, Map]:
    """Maps by name, of one clip or image: tubes of `plan` or `image_plan` as `embed` takes them, B = 1.

    TubeViT: "pool". ViViT, CLIP, AIM, ST-Adapter, grafted: "class token", or what is read instead of one.
    DualPath: "spatial" and "temporal". Gated: "class token" of CLIP, and "adapter", the last one, over tubes.
    ValueError for another model.
    """
    held = matching(tubes, model.plans)
    with torch.no_grad():
        if isinstance(model, TubeViT):
            return _tubevit(model, tubes, held)
        if isinstance(model, ViViT):
            return _vivit(model, tubes, held)
        if isinstance(model, DualPath):
            return _dualpath(model, tubes, held)
        if isinstance(model, Gated):
            return _gated(model, tubes, held)
        if isinstance(model, Grafted):
            return _grafted(model, tubes, held)
        if isinstance(model, Clip | AIM | STAdapter):
            tower = model if isinstance(model, Clip) else model.clip
            return _clip(model, tower, tubes, held, _clip_plan(tower, held))
    raise ValueError(f"no attention is known of a {type(model).__name__}")


def self_weights(module: SelfAttention, x_bLD: Tensor, queries: slice = slice(None)) -> Tensor:
    """softmax(q k / sqrt(E)) of some queries, (b, K, Q, L), as the module itself computes it."""
    q, k, _ = module.qkv(x_bLD).chunk(3, dim=-1)
    return _softmax(q[:, queries], k, module.heads)


def cross_weights(module: CrossAttention, x_bQD: Tensor, source_bMD: Tensor) -> Tensor:
    """The same of attention to other tokens: (b, K, Q, M)."""
    k, _ = module.kv(source_bMD).chunk(2, dim=-1)
    return _softmax(module.q(x_bQD), k, module.heads)


def _softmax(q_bQD: Tensor, k_bMD: Tensor, heads: int) -> Tensor:
    q_bKQE, k_bKME = split(q_bQD, heads).float(), split(k_bMD, heads).float()
    return (q_bKQE @ k_bKME.transpose(-1, -2) / math.sqrt(q_bKQE.shape[-1])).softmax(dim=-1)


def _watch(model: Model, tubes: Mapping[str, Tensor], modules: Sequence[nn.Module]) -> list[list[tuple]]:
    """What each module is given while a clip is embedded: of every call, its inputs."""
    calls: list[list[tuple]] = [[] for _ in modules]

    def note(into: list[tuple]) -> Callable[[nn.Module, tuple], None]:
        return lambda module, inputs: into.append(inputs)

    hooks = [
        module.register_forward_pre_hook(note(into)) for module, into in zip(modules, calls, strict=True)
    ]
    try:
        model.embed(tubes)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _tubevit(model: TubeViT, tubes: Mapping[str, Tensor], held: Plan) -> dict[str, Map]:
    (((z_1ND,),),) = _watch(model, tubes, [model.pool])
    weights_N = model.pool.score(z_1ND).float().softmax(dim=1).flatten()
    placed = _place(weights_N, held, held, model.trunk.tokenizer.merges)
    return {"pool": Map("the weights of the attention pooling over all tokens", placed)}


def _vivit(model: ViViT, tubes: Mapping[str, Tensor], held: Plan) -> dict[str, Map]:
    last = _last(model.encoder.blocks)
    times = held.tubes[0].grid[0]
    if model.variant == "factorised_self_attention":
        time_attention = last.get_submodule("attention_time")
        assert isinstance(time_attention, SelfAttention)
        ((space_TSD,),), ((time_STD,),) = _watch(model, tubes, [last.attention, time_attention])
        space_TSS = self_weights(last.attention, space_TSD).mean(1)
        time_ST = self_weights(time_attention, time_STD).mean((1, 2))
        # What every token asks of its times, and those tokens then of their places.
        weights_TS = torch.einsum("qt,tqs->ts", time_ST, space_TSS) / len(time_ST)
        about = "attention received in the last block, through time and then space: mean over all tokens"
    elif model.variant == "factorised_dot_product":
        (((x_1TSD,),),) = _watch(model, tubes, [last.attention])
        q_TSKE, k_TSKE = (
            x.unflatten(-1, (last.attention.heads, -1))[0].float()
            for x in last.attention.qkv(x_1TSD).chunk(3, dim=-1)[:2]
        )
        half, scale = last.attention.heads // 2, math.sqrt(q_TSKE.shape[-1])
        space = torch.einsum("tqke,tske->tkqs", q_TSKE[:, :, :half], k_TSKE[:, :, :half]) / scale
        time = torch.einsum("qske,tske->skqt", q_TSKE[:, :, half:], k_TSKE[:, :, half:]) / scale
        space_TS, time_ST = space.softmax(-1).mean((1, 2)), time.softmax(-1).mean((1, 2))
        weights_TS = (space_TS / len(space_TS) + time_ST.T / len(time_ST)) / 2
        about = "attention received in the last block, over space and over time: mean over all tokens"
    elif model.variant == "joint":
        (((x_1LD,),),) = _watch(model, tubes, [last.attention])
        weights_TS = _of_first(last.attention, x_1LD).unflatten(1, (times, -1))[0]
        about = "the class token's attention in the last block"
    elif model.variant == "frame_mean":
        (((x_TLD,),),) = _watch(model, tubes, [last.attention])
        weights_TS = _of_first(last.attention, x_TLD) / times
        about = "the class token's attention in the last block, at each time by itself"
    else:
        final = _last(model.temporal_encoder.blocks)
        ((x_TLD,),), ((z_1LD,),) = _watch(model, tubes, [last.attention, final.attention])
        weights_TS = _of_first(final.attention, z_1LD).T * _of_first(last.attention, x_TLD)
        about = "the class tokens' attention in the last blocks: over time, multiplied by that over space"
    return {"class token": Map(about, _place(weights_TS.flatten(), held, held))}


def _clip(
    model: Model, tower: Clip, tubes: Mapping[str, Tensor], held: Plan, clip_plan: Plan
) -> dict[str, Map]:
    module = _reader(tower)
    (calls,) = _watch(model, tubes, [module])
    weights_FS = _read_out(tower, calls[-1])
    placed = _place(weights_FS.flatten() / len(weights_FS), clip_plan, held)
    return {"class token": Map(f"{_whose(tower)}, in each frame by itself", placed)}


def _dualpath(model: DualPath, tubes: Mapping[str, Tensor], held: Plan) -> dict[str, Map]:
    # One tower serves both paths: its blocks take the spatial one first, its pool the temporal one.
    (calls,) = _watch(model, tubes, [_reader(model.clip)])
    names = ["temporal", "spatial"] if model.clip.pool is not None else ["spatial", "temporal"]
    about = {
        "spatial": f"{_whose(model.clip)}, in each key frame by itself",
        "temporal": f"{_whose(model.clip)} in the framesets, shown at the time of each small frame",
    }
    paths = {"spatial": model.key_frames, "temporal": model.framesets}
    found = {name: _read_out(model.clip, inputs) for name, inputs in zip(names, calls, strict=True)}
    return {
        name: Map(about[name], _place(found[name].flatten() / len(found[name]), Plan(tubes=(tube,)), held))
        for name, tube in paths.items()
    }


def _gated(model: Gated, tubes: Mapping[str, Tensor], held: Plan) -> dict[str, Map]:
    layer = max(map(int, model.adapters))
    adapter = model.adapters[str(layer)]
    assert isinstance(adapter, Adapter)
    (calls, ((x_1LD, tubes_1NS),)) = _watch(model, tubes, [_reader(model.clip), adapter.attention])
    weights_FS = _read_out(model.clip, calls[-1])
    clip_plan = _clip_plan(model.clip, held)
    first = _place(weights_FS.flatten() / len(weights_FS), clip_plan, held)
    # All frames stand in one row; only their class tokens are read out, where there are any.
    every = clip_plan.tubes[0].grid[1] * clip_plan.tubes[0].grid[2] + 1
    asking_1QD = x_1LD[:, ::every] if model.clip.tower.class_tokens else x_1LD
    weights_N = cross_weights(adapter.attention, asking_1QD, tubes_1NS).mean((1, 2)).flatten()
    trunk = model.trunk
    trunk_plan = trunk.plan if held == model.plan or trunk.image_plan is None else trunk.image_plan
    gate = adapter.gate_attention.tanh().item()
    who = "class tokens of all frames" if model.clip.tower.class_tokens else "patches of all frames"
    about = f"the {who} over the tubes, in the adapter before block {layer}; its gate is {gate:.3f}"
    second = _place(weights_N, trunk_plan, held, trunk.tokenizer.merges)
    return {
        "class token": Map(f"{_whose(model.clip)}, in each frame by itself", first),
        "adapter": Map(about, second),
    }


def _grafted(model: Grafted, tubes: Mapping[str, Tensor], held: Plan) -> dict[str, Map]:
    (calls,) = _watch(model, tubes, [_reader(model.clip)])
    (weights_N,) = _read_out(model.clip, calls[-1])
    clip_plan = _clip_plan(model.clip, held)
    placed = _place(weights_N[: clip_plan.tokens], clip_plan, held)
    if held == model.plan:
        rest = _place(weights_N[clip_plan.tokens :], model.tubes, held, model.tokenizer.merges)
        for name, x in rest.items():
            placed[name] = placed[name] + x if name in placed else x
    return {"class token": Map(f"{_whose(model.clip)}, over patches and tubes", placed)}


def _reader(tower: Clip) -> nn.Module:
    """What mixes the tokens last before a tower's embedding is read."""
    return _last(tower.blocks).attention if tower.pool is None else tower.pool.attention


def _whose(tower: Clip) -> str:
    if tower.pool is not None:
        return "the attention of CLIP's pooling"
    if tower.tower.pool == "avg":
        return "attention received in CLIP's last block (mean over its patches)"
    return "the attention of CLIP's class token in its last block"


def _read_out(tower: Clip, inputs: tuple) -> Tensor:
    """(b, L - class tokens): how much each patch weighs; 1 in every sequence."""
    module = _reader(tower)
    if isinstance(module, CrossAttention):
        query_b1D, x_bLD = inputs
        return cross_weights(module, query_b1D, x_bLD).mean((1, 2))
    assert isinstance(module, SelfAttention)
    (x_bLD,) = inputs
    if tower.tower.pool == "tok":
        return _of_first(module, x_bLD)
    return _shares(self_weights(module, x_bLD, slice(1, None)).mean((1, 2))[:, 1:])


def _of_first(module: SelfAttention, x_bLD: Tensor) -> Tensor:
    """(b, L - 1): the first token's attention to the others; what it pays itself is left out."""
    return _shares(self_weights(module, x_bLD, slice(0, 1))[:, :, 0, 1:].mean(1))


def _shares(weights_bL: Tensor) -> Tensor:
    return weights_bL / weights_bL.sum(-1, keepdim=True)


def _last(blocks: nn.ModuleList) -> Block:
    block = blocks[-1]
    assert isinstance(block, Block)
    return block


def _clip_plan(tower: Clip, held: Plan) -> Plan:
    """What of a batch is CLIP's: a clip's key frames, or an image."""
    return tower.plan if held.contains(tower.plan) or tower.image_plan is None else tower.image_plan


def _place(
    weights_N: Tensor, own: Plan, held: Plan, merges: Mapping[str, Sizes] | None = None
) -> dict[str, Tensor]:
    """From tokens in the order of plan `own` to the grids of `held`, which contains it.

    merges: a token of several places is shared out among them (see `models.tokenizer`).
    """
    found, grids = held.locate(own), {tube.name: tube.grid for tube in held.tubes}
    assert found is not None
    placed: dict[str, Tensor] = {}
    counts = [math.prod(merged_grid(tube, merges or {})) for tube in own.tubes]
    for tube, part in zip(own.tubes, weights_N.float().cpu().split(counts), strict=True):
        joined = (merges or {}).get(tube.name, (1, 1, 1))
        whole = part.unflatten(0, merged_grid(tube, merges or {})) / math.prod(joined)
        for axis, k in enumerate(joined):
            whole = whole.repeat_interleave(k, dim=axis)
        n_t, n_h, n_w = whole.shape
        name, slices = found[tube.name]
        onto = placed.setdefault(name, torch.zeros(grids[name]))
        onto[slices][:n_t, :n_h, :n_w] += whole
    return placed
