"""What all adapted towers promise: adapters and head learn, nothing else does, and they run as models do."""

import pytest
import torch
from tiny import KINDS, make, random_tubes, trainable, wake

OWN = ("adapters.", "temporal_embedding", "spatial.", "temporal.", "head.")
# ST-Adapter's last convolution changes patches alone, and the tower is read at its class token.
BLIND = {"st twice": "adapters.2.mlp."}


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_exactly_the_trainable_names(kind):
    model = make(kind, num_classes=5).train()
    wake(model)
    assert trainable(model) == {name for name, _ in model.named_parameters() if name.startswith(OWN)}
    assert all(name.startswith((*OWN, "clip.")) for name in model.state_dict())
    model(random_tubes(model.plan)).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    blind = {name for name in trainable(model) if kind in BLIND and name.startswith(BLIND[kind])}
    assert reached == trainable(model) - blind
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith("clip."))


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_leaves_clip_alone(kind):
    model = make(kind, num_classes=5).train()
    assert not any(module.training for module in model.get_submodule("clip").modules())
    layers = model.get_submodule("spatial" if kind == "dualpath" else "adapters")
    assert all(module.training for module in layers.modules())
    wake(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(random_tubes(model.plan)).square().sum().backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith(("clip.", BLIND.get(kind, "clip."))), name


@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_a_batch_do_not_meet(kind):
    model = make(kind)
    wake(model)
    tubes = random_tubes(model.plan)
    with torch.no_grad():
        alone = model.embed({name: x[1:] for name, x in tubes.items()})
        torch.testing.assert_close(alone, model.embed(tubes)[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_activations_changes_no_gradient(kind):
    model = make(kind, num_classes=5).train()
    wake(model)
    grads = []
    for on in (False, True):
        model.recompute_activations(on)
        model.zero_grad()
        torch.manual_seed(0)  # dropout
        model(random_tubes(model.plan)).square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(grads[0], grads[1])
