"""The gate: exactly CLIP when closed, and nothing but the adapters, TubeViT and the head learns."""

from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import models
from models.gated import Gated
from pipeline.plan import Plan

ARCH = "ViT-S-32-alt"
SMALL = {"frames": 20, "size": (64, 96), "clip": models.ClipConfig(arch=ARCH, every=8)}


def random_tubes(plan: Plan, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        tube.name: torch.randint(0, 256, (batch, *tube.shape), dtype=torch.uint8, generator=generator)
        for tube in plan.tubes
    }


def gated(num_classes: int | None = None, adapter_layers: tuple[int, ...] | None = None) -> Gated:
    model = models.create("gated-tiny", num_classes=num_classes, adapter_layers=adapter_layers, **SMALL)
    assert isinstance(model, Gated)
    return model


def open_gates(model: Gated) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name:
                parameter.fill_(0.5)


@pytest.mark.parametrize("images", [False, True])
def test_closed_gates_are_clip_bit_for_bit(images):
    model = gated()
    plan, clip_plan = (model.image_plan, model.clip.image_plan) if images else (model.plan, model.clip.plan)
    assert plan is not None
    assert clip_plan is not None
    tubes = random_tubes(plan)
    alone = models.create("clip", **SMALL)
    alone.load_state_dict(model.clip.state_dict())
    with torch.no_grad():
        assert torch.equal(model.embed(tubes), alone.embed(plan.take(tubes, clip_plan)))
        open_gates(model)
        assert (model.embed(tubes) - alone.embed(plan.take(tubes, clip_plan))).abs().max() > 1e-3


def test_closed_gates_are_bit_equal_where_clip_and_tubevit_share_a_tube():
    model = models.create("gated-tiny", frames=20, size=(32, 48), clip=models.ClipConfig(arch="ViT-S-16-alt"))
    assert isinstance(model, Gated)
    assert len(model.plan.tubes) == 4
    tubes = random_tubes(model.plan)
    with torch.no_grad():
        expected = model.clip.embed(model.plan.take(tubes, model.clip.plan))
        assert torch.equal(model.embed(tubes), expected)


def test_closed_gates_are_open_clip(tmp_path):
    theirs: Any = open_clip.create_model(ARCH, pretrained=None).eval()
    path = tmp_path / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, path)
    clip = models.ClipConfig(arch=ARCH, pretrained=str(path), every=8)
    model = models.create("gated-tiny", frames=20, size=(224, 224), clip=clip)
    tubes = random_tubes(model.plan, batch=1)
    frames = tubes["tube_1x32x32"][0, :, :, :, 0]  # (F, n_h, n_w, 32, 32, 3)
    pixels = frames.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, 224, 224).float() / 255
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        expected = theirs.encode_image((pixels - mean) / std).mean(0)
        assert (model.embed(tubes)[0] - expected).abs().max() < 1e-4


def test_gradient_reaches_exactly_the_trainable_names():
    model = gated(num_classes=5)
    open_gates(model)
    model(random_tubes(model.plan)).square().sum().backward()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {
        n for n, _ in model.named_parameters() if n.startswith(("adapters.", "trunk.", "head."))
    }
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == trainable


def test_closed_gates_learn_first():
    model = gated(num_classes=5)
    model(random_tubes(model.plan)).square().sum().backward()
    for adapter in model.adapters.values():
        for gate in ("gate_attention", "gate_mlp"):
            assert adapter.get_parameter(gate).grad != 0
        for projection in ("attention.out.weight", "mlp.down.weight"):
            assert adapter.get_parameter(projection).abs().sum() > 0


def test_a_training_step_leaves_clip_alone():
    model = gated(num_classes=5).train()
    assert not model.clip.training
    open_gates(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(random_tubes(model.plan)).square().sum().backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("clip."), name


def test_the_frozen_prefix_builds_no_graph():
    model = gated(adapter_layers=(5, 9))
    open_gates(model)
    has_graph = []
    for block in model.clip.blocks:
        block.register_forward_hook(lambda module, inputs, output: has_graph.append(output.requires_grad))
    model.embed(random_tubes(model.plan))
    assert has_graph == [False] * 5 + [True] * 7


def test_default_adapters_stand_from_a_third_of_the_depth_on():
    assert list(gated().adapters) == ["4", "6", "8", "10"]


def test_an_image_uses_one_frame_and_the_2d_tokens():
    model = gated()
    open_gates(model)
    assert model.image_plan is not None
    assert sorted(tube.name for tube in model.image_plan.tubes) == ["tube_1x16x16", "tube_1x32x32"]
    tubes = random_tubes(model.image_plan)
    with torch.no_grad():
        z = model.embed(tubes)
        assert z.shape == (2, 256)
        tubes["tube_1x16x16"] = 255 - tubes["tube_1x16x16"]
        assert (model.embed(tubes) - z).abs().max() > 1e-4


def test_mirrored_reaches_the_trunk():
    model = gated()
    open_gates(model)
    tubes = random_tubes(model.plan)
    with torch.no_grad():
        z = model.embed(tubes)
        turned = model.embed(tubes, torch.tensor([False, True]))
    torch.testing.assert_close(turned[0], z[0])
    assert (turned[1] - z[1]).abs().max() > 1e-5


def test_an_overflow_behind_a_closed_gate_shows():
    model = gated()
    with torch.no_grad():
        model.get_parameter("adapters.8.mlp.down.bias").fill_(float("inf"))
        assert model.embed(random_tubes(model.plan)).isnan().any()
