"""How fast the models are: against convolutions, transformers' ViViT and open_clip's ViT on the same weights.

    python -m benchmarks.models [--threads N] [--rounds N] [--device cpu|cuda] [--only ROWS ...]

Ours takes uint8 tubes, as shards hold them; a baseline takes the uint8 clip that they were cut from, and its
normalisation counts. Both are on the device already. The two sides take turns, so that what else the machine
does hits both alike: a ratio is the median of those of single rounds, above one where ours is faster, and
half of the rounds lie in the range given. Time is CPU time for one thread on a CPU, else wall time. On a GPU,
and in rows that say so, under bfloat16 autocast. A training step is forward, cross-entropy, backward and SGD.

ViViT's baseline has the fused tanh GELU; the unfused one that published configs name is slower.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

import models
from benchmarks.baselines import ConvTokenizer, ConvTubeViT, Normalise, from_transformers
from benchmarks.memory import status_mb
from benchmarks.race import Machine, Row, backward, both, race, step, table
from models import plans
from models.clip import Clip
from models.model import Model
from models.tokenizer import TubeTokenizer
from models.tubevit import TubeViT
from models.vivit import ViViT
from pipeline.cut import cut
from pipeline.plan import Plan

out = Console(width=140)
WHOLE, TOKENS, TOKENS_BF16 = 0.98, 3.0, 10.0  # the least ratios that are wanted


def clips_of(plan: Plan, batch: int, machine: Machine) -> tuple[Tensor, dict[str, Tensor]]:
    """Random uint8 clips (B, T, H, W, 3), and their tubes."""
    (canvas,) = plan.canvases
    clips = np.random.default_rng(0).integers(0, 256, (batch, *canvas.shape, 3), np.uint8)
    cuts = [cut(clip, plan) for clip in clips]
    tubes = {t.name: torch.from_numpy(np.stack([c[t.name] for c in cuts])) for t in plan.tubes}
    return torch.from_numpy(clips).to(machine.device), {n: x.to(machine.device) for n, x in tubes.items()}


# --- rows ---------------------------------------------------------------------------------------------------


def tokenizer(machine: Machine) -> Iterator[Row]:
    plan, batch = models.plan("tubevit-b16"), 64 if machine.gpu else 8
    ours = TubeTokenizer(plan, 768).to(machine.device)
    theirs = nn.Sequential(Normalise(), ConvTokenizer(ours)).to(machine.device)
    clips, tubes = clips_of(plan, batch, machine)
    for bf16 in (True,) if machine.gpu else (False, True):
        if bf16 and not machine.gpu and not machine.bf16_unit():
            out.print("this CPU has no bf16 unit: the tokenizer is not measured in bfloat16")
            continue
        name, least = ("bf16", TOKENS_BF16) if bf16 else ("fp32", TOKENS)
        name = f"tubevit-b16's tokens x{batch}, {name}"
        row = both(name, "conv3d", (ours, tubes), (theirs, clips), machine, least=least, bf16=bf16)
        yield row
        runs = backward(ours, tubes, machine, bf16), backward(theirs, clips, machine, bf16)
        yield Row(f"{name}, and backward", "conv3d", *runs, row.difference, least)


def tubevit(machine: Machine) -> Iterator[Row]:
    for name, batch in (("tubevit-small", 2), ("tubevit-b16", 1)):
        batch = 32 if machine.gpu else batch
        ours = models.create(name)
        assert isinstance(ours, TubeViT)
        theirs = ConvTubeViT(ours).to(machine.device)
        ours.to(machine.device)
        clips, tubes = clips_of(ours.plan, batch, machine)
        yield from passes(f"{name} x{batch}", "conv3d", ours, tubes, theirs, theirs, clips, machine)


def vivit(machine: Machine) -> Iterator[Row]:
    from transformers import VivitConfig, VivitModel

    frames, batch = (32, 8) if machine.gpu else (8, 1)
    plan = plans.tubes(plans.canvas(frames, (224, 224), "area"), plans.VIVIT)
    config = VivitConfig(num_frames=frames, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    torch.manual_seed(0)
    theirs = VivitModel(config, add_pooling_layer=False).eval()
    ours = ViViT(plan, 768, 12, 12, variant="joint").eval()
    ours.load_state_dict(from_transformers(theirs.state_dict(), plan.tubes[0].name))
    normalise = Normalise().to(machine.device)
    theirs.to(machine.device)
    ours.to(machine.device)

    def embed(clips_BTHWC: Tensor) -> Tensor:
        return theirs(normalise(clips_BTHWC).transpose(1, 2)).last_hidden_state[:, 0]

    clips, tubes = clips_of(plan, batch, machine)
    name = f"ViViT B/16x2, model 1, {frames} frames x{batch}"
    yield from passes(name, "transformers", ours, tubes, theirs, embed, clips, machine)


def clip(machine: Machine) -> Iterator[Row]:
    if importlib.util.find_spec("open_clip") is None:
        out.print("no open_clip here: its ViT is not measured")
        return
    import open_clip

    from models import clip_layouts
    from models.towers import tower

    arch, batch = "ViT-B-16", 8 if machine.gpu else 1
    torch.manual_seed(0)
    theirs = open_clip.create_model(arch, pretrained=None).eval()
    frames = 8 if machine.gpu else 4
    ours = Clip(plans.clip(plans.canvas(frames, (224, 224), "area"), 16, 1), tower(arch))
    ours.load_state_dict(clip_layouts.image(theirs.state_dict(), tower(arch), arch))
    normalise = Normalise().to(machine.device)
    visual = theirs.visual.requires_grad_(False).to(machine.device)
    ours.to(machine.device)

    def embed(clips_BTHWC: Tensor) -> Tensor:
        z_bE = visual(normalise(clips_BTHWC).transpose(1, 2).flatten(0, 1))
        return z_bE.unflatten(0, (batch, frames)).mean(dim=1)

    clips, tubes = clips_of(ours.plan, batch, machine)
    name = f"CLIP B/16, {frames} frames x{batch}: forward"
    yield both(name, "open_clip", (ours.embed, tubes), (embed, clips), machine, least=WHOLE)


def compiled(machine: Machine) -> Iterator[Row]:
    batch = 32 if machine.gpu else 2
    model = models.create("tubevit-small").to(machine.device)
    _, tubes = clips_of(model.plan, batch, machine)
    fast = torch.compile(model.embed, fullgraph=True)
    name = f"tubevit-small x{batch}, compiled: forward"
    yield both(name, "eager", (fast, tubes), (model.embed, tubes), machine, least=None)


def recomputing(machine: Machine) -> Iterator[Row]:
    batch = 32 if machine.gpu else 2
    model, tubes = recomputed(machine, batch)
    plain = step(model, model.embed, tubes, machine)

    def run(on: bool) -> Tensor:
        model.recompute_activations(on)
        return plain()

    name = f"tubevit-small x{batch}, activations recomputed: step"
    yield Row(name, "kept", lambda: run(True), lambda: run(False), 0.0)
    peaks = {on: peak_mb(machine, batch, on) for on in (True, False)}
    out.print(
        f"tubevit-small x{batch}, a step's memory above the model's: {peaks[True]:.0f} MB with activations "
        f"recomputed, {peaks[False]:.0f} MB with them kept, {peaks[True] / peaks[False]:.2f} of it"
    )


def recomputed(machine: Machine, batch: int) -> tuple[Model, Mapping[str, Tensor]]:
    model = models.create("tubevit-small").to(machine.device)
    return model, clips_of(model.plan, batch, machine)[1]


def passes(
    name: str,
    baseline: str,
    ours: Model,
    tubes: Mapping[str, Tensor],
    theirs: nn.Module,
    embed: Callable[..., Tensor],
    clips: Tensor,
    machine: Machine,
) -> Iterator[Row]:
    """Both rows of a model that trains. Embeddings of `theirs` are `embed`'s."""
    row = both(f"{name}: forward", baseline, (ours.embed, tubes), (embed, clips), machine, least=WHOLE)
    yield row
    runs = step(ours, ours.embed, tubes, machine), step(theirs, embed, clips, machine)
    yield Row(f"{name}: step", baseline, *runs, row.difference, WHOLE)


# --- memory -------------------------------------------------------------------------------------------------


def peak_mb(machine: Machine, batch: int, recompute: bool) -> float:
    """How far the memory of a training step rises above what is held before it, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe(duplex=False)
    arguments = (machine.device, batch, recompute, torch.get_num_threads(), other)
    process = context.Process(target=_peak, args=arguments)
    process.start()
    other.close()
    found = pipe.recv()
    process.join()
    return found


def _peak(device: str, batch: int, recompute: bool, threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    machine = Machine(device, time.perf_counter)
    model, tubes = recomputed(machine, batch)
    model.recompute_activations(recompute)
    run = step(model, model.embed, tubes, machine)
    if machine.gpu:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        pipe.send((torch.cuda.max_memory_allocated() - held) / 2**20)
    else:
        before = status_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        run()
        pipe.send(status_mb("VmHWM") - before)


# --- the table ---------------------------------------------------------------------------------------------


def main() -> None:
    rows = {f.__name__: f for f in (tokenizer, tubevit, vivit, clip, compiled, recomputing)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side, at least 2")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--only", nargs="+", choices=rows, default=list(rows), metavar="ROWS", help=", ".join(rows)
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False
    alone = arguments.device == "cpu" and arguments.threads == 1
    machine = Machine(arguments.device, time.process_time if alone else time.perf_counter)
    where = (
        torch.cuda.get_device_name() if machine.gpu else f"{arguments.threads} threads of {os.cpu_count()}"
    )
    title = f"{'CPU' if alone else 'wall'} time on {where}, {'bf16' if machine.gpu else 'fp32'}"
    found = table(f"{title}, {arguments.rounds} rounds")
    out.print(f"{time.strftime('%Y-%m-%d')}  Python {platform.python_version()}, torch {torch.__version__}")
    for name in arguments.only:
        for row in rows[name](machine):
            line = race(row, machine, arguments.rounds)
            out.print(*line[:1], f"{line[4]}x", style="dim")
            found.add_row(*line)
    out.print(found)


if __name__ == "__main__":
    main()
