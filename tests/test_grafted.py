"""Tubes in a frozen CLIP's own sequence: what is frozen, what the gate does, and what is carried over."""

import pytest
import torch

import models
from models import weights
from models.grafted import Grafted
from pipeline.plan import Plan

CLIP = models.ClipConfig(arch="ViT-S-32-alt")  # 384 wide, 12 layers
SMALL = {"frames": 32, "size": (64, 96), "clip": CLIP}


def random_tubes(plan: Plan, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        tube.name: torch.randint(0, 256, (batch, *tube.shape), dtype=torch.uint8, generator=generator)
        for tube in plan.tubes
    }


def grafted(**options) -> Grafted:
    model = models.create("grafted-b16", **{**SMALL, **options})
    assert isinstance(model, Grafted)
    return model


@pytest.fixture(scope="module")
def small_tubevit(tmp_path_factory):
    """A TubeViT of 96 channels is a quarter as wide as the tower; the preset nearest to it is 192 wide."""
    folder = tmp_path_factory.mktemp("small")
    weights.save(models.create("tubevit-tiny", frames=32, size=(64, 96), seed=5), folder)
    return folder


def test_an_image_is_clip_exactly_while_the_gate_is_closed():
    model = grafted()
    assert model.image_plan is not None
    tubes = random_tubes(model.image_plan)
    with torch.no_grad():
        assert torch.equal(model.embed(tubes), model.clip.embed(tubes))
        model.gate.fill_(0.5)
        assert (model.embed(tubes) - model.clip.embed(tubes)).abs().max() > 1e-3


def test_a_closed_gate_changes_nothing_over_the_same_tokens():
    model = grafted()
    tubes = random_tubes(model.plan)
    with torch.no_grad():
        x = model.enter(tubes)
        for block in model.clip.blocks:
            x = block(x)
        assert torch.equal(model.embed(tubes), model.clip.leave(x, 2)[:, 0])


def test_the_gate_adds_what_went_in_after_the_last_frozen_block():
    model = grafted(frozen_layers=5)
    tubes = random_tubes(model.plan)
    with torch.no_grad():
        model.gate.fill_(0.3)
        first = x = model.enter(tubes)
        for layer, block in enumerate(model.clip.blocks):
            x = block(x)
            if layer == 4:  # the fifth block
                x = x + torch.tensor(0.3).tanh() * first
        torch.testing.assert_close(model.embed(tubes), model.clip.leave(x, 2)[:, 0])


def test_tubes_and_patches_share_one_sequence():
    model = grafted()
    tubes = random_tubes(model.plan)
    x = model.enter(tubes)
    # 64x96 px: 2x3 patches of 32 px in one key frame; 2x2x3, 3x2x3 and 2x2x3 tubes.
    assert x.shape == (2, 1 + 6 + 12 + 18 + 12, 384)
    changed = {**tubes, "tube_8x8x8": 255 - tubes["tube_8x8x8"]}
    with torch.no_grad():
        moved = (model.enter(changed) - x).abs().amax(dim=(0, 2)) > 0
        assert moved.tolist() == [False] * 7 + [True] * 12 + [False] * 30
        assert (model.embed(changed) - model.embed(tubes)).abs().max() > 1e-4


@pytest.mark.parametrize("frozen_layers", [None, 4])
def test_what_trains_is_the_gate_the_later_blocks_and_the_head(frozen_layers, tmp_path):
    model = grafted(frozen_layers=frozen_layers, num_classes=3)
    first = frozen_layers or 9  # a quarter of twelve trains
    later = tuple(f"clip.blocks.{layer}." for layer in range(first, 12))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {
        n for n, _ in model.named_parameters() if n.startswith(("gate", "tokenizer.", "head.", *later))
    }
    assert trainable == expected
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.nn.functional.cross_entropy(model(random_tubes(model.plan)), torch.tensor([0, 2])).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == expected
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in expected), name


def test_carried_tubes_are_those_of_the_small_model_and_stay_frozen(small_tubevit):
    clip = models.ClipConfig(arch="ViT-B-32")  # 768 wide: four times tubevit-tiny
    options = {**SMALL, "clip": clip, "tubes_from": str(small_tubevit)}
    models.check("grafted-b16", **options)
    model = models.create("grafted-b16", **options, num_classes=3)
    small = models.create("tubevit-tiny", frames=32, size=(64, 96), checkpoint=small_tubevit)
    for tube in ("tube_8x8x8", "tube_16x4x4", "tube_4x12x12"):
        for kind in ("weight", "bias"):
            carried = model.get_parameter(f"tokenizer.{kind}.{tube}")
            assert torch.equal(carried, small.get_parameter(f"trunk.tokenizer.{kind}.{tube}"))
            assert not carried.requires_grad
    trainable = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"gate", "clip", "head"}
    # Nothing before the gate can learn, so no graph is built for it.
    has_graph: list[bool] = []
    for block in model.get_submodule("clip.blocks").children():
        block.register_forward_hook(lambda module, inputs, output: has_graph.append(output.requires_grad))
    model(random_tubes(model.plan))
    assert has_graph == [False] * 9 + [True] * 3


def test_tubes_of_another_width_are_refused(small_tubevit):
    with pytest.raises(ValueError, match=r"model\.tubes_from = .*does not fit.*\(192,\), not \(96,\)"):
        models.check("grafted-b16", **SMALL, tubes_from=str(small_tubevit))


def test_a_model_without_tubes_is_refused(tmp_path):
    weights.save(models.create("clip", frames=4, size=(32, 32), clip=CLIP), tmp_path)
    with pytest.raises(
        ValueError, match=r"model\.tubes_from = .*: clip has no tubes to carry; give a TubeViT"
    ):
        models.check("grafted-b16", **SMALL, tubes_from=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"model\.tubes_from = 'gone': no config\.json there"):
        models.check("grafted-b16", **SMALL, tubes_from="gone")


def test_a_checkpoint_round_trips(small_tubevit, tmp_path):
    options = {**SMALL, "clip": models.ClipConfig(arch="ViT-B-32"), "num_classes": 3}
    model = models.create("grafted-b16", **options, tubes_from=str(small_tubevit))
    weights.save(model, tmp_path)
    again = models.create("grafted-b16", **options, checkpoint=tmp_path)
    assert again.config == model.config
    tubes = random_tubes(model.plan)
    with torch.no_grad():
        assert torch.equal(model(tubes), again(tubes))
