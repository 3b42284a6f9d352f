"""A frozen copy that shares W: it computes what the model did, whatever the model is trained to."""

import pytest
import torch
from torch import nn

from fastlora import (
    LoRAConfig,
    add_adapter,
    lora_disabled,
    merge_lora,
    reference_model,
    set_adapter,
    set_lora_enabled,
)
from tests.models import adapted, mlp, moved, trainable
from tests.packed import net as packed_net

X = torch.randn(7, 6)


def stepped(model, x=X):
    """The model after a large step, and an output of batches' statistics."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()(x).square().sum().backward()
    optimizer.step()
    return model.eval()


def with_norm():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3), nn.Linear(3, 2))


@pytest.mark.parametrize(
    "options", [{}, {"bias": "all"}, {"modules_to_save": ["3"]}, {"dora": True}], ids=str
)
def test_training_the_model_leaves_it_as_it_was(options):
    model = moved(adapted(with_norm(), target_modules=["0", "2"], **options)).eval()
    add_adapter(model, "fr", LoRAConfig(r=2, target_modules=["2"]))
    before, trains = model(X), trainable(model)
    reference = reference_model(model.train())
    assert not trainable(reference)
    assert trainable(model) == trains
    assert not reference.training
    assert model.training
    assert torch.equal(reference(X), before)
    assert not torch.equal(stepped(model)(X), before)
    assert torch.equal(reference(X), before)
    assert all(model[place].weight is reference[place].weight for place in (0, 2))
    own = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    assert not own & {p.data_ptr() for p in reference.parameters()}
    set_adapter(model, "fr")
    assert torch.equal(reference(X), before)


def test_its_updates_can_be_switched_off_alone():
    model = moved(adapted(mlp()))
    with lora_disabled(model):
        base = model(X)
    reference = reference_model(model)
    set_lora_enabled(reference, False)
    assert torch.equal(reference(X), base)
    assert not torch.equal(model(X), base)


def test_a_packed_w_is_shared():
    x = torch.randn(7, 64)
    model = moved(adapted(packed_net())).eval()
    before = model(x)
    reference = reference_model(model)
    assert model[0].weight is reference[0].weight
    assert not torch.equal(stepped(model, x)(x), before)
    assert torch.equal(reference(x), before)


def test_what_would_change_with_the_model_is_refused():
    model = adapted(mlp()).eval()
    merge_lora(model)
    with pytest.raises(
        ValueError, match=r"layers must be unmerged to share W; merged: '0', '2' \(unmerge_lora\)"
    ):
        reference_model(model)
    with pytest.raises(ValueError, match="LoRA"):
        reference_model(mlp())
