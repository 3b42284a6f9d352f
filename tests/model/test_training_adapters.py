"""Of several adapters on one model the one in use is trained, and keeps its gradients around a block."""

import copy

import pytest
import torch

from fastlora import (
    LoRAConfig,
    active_adapter,
    add_adapter,
    apply_lora,
    lora_layers,
    set_adapter,
    unfreeze,
    use_adapter,
)
from fastlora.layer.adapter import adapters_of
from tests.models import NetWithHead
from tests.several_adapters import filled, two


def tokens():
    return torch.arange(7)


def test_only_the_adapter_in_use_is_trained_and_the_other_does_not_move():
    model = two()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for name, idle in (("default", "fr"), ("fr", "default")):
        set_adapter(model, name)
        trainable = {id(p) for p in model.parameters() if p.requires_grad}
        own = {id(t) for _, layer in lora_layers(model) for t in adapters_of(layer)[name][:2]}
        assert trainable == own
        kept = [t.clone() for _, layer in lora_layers(model) for t in adapters_of(layer)[idle][:2]]
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        after = [t for _, layer in lora_layers(model) for t in adapters_of(layer)[idle][:2]]
        assert all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))


def test_what_was_not_trained_of_an_adapter_is_not_trained_when_it_comes_back():
    model = two()
    model[0].lora_A.requires_grad_(False)
    set_adapter(model, "fr")
    assert model[0].lora_A.requires_grad
    set_adapter(model, "default")
    assert not model[0].lora_A.requires_grad
    assert model[0].lora_B.requires_grad


def test_unfreezing_leaves_idle_adapters_frozen():
    model = two(second={"target_modules": ["0"]})
    set_adapter(model, "fr")
    unfreeze(model)
    idle = [model[0].adapters["default"], model[2].adapters["default"]]
    assert not any(p.requires_grad for each in idle for p in each.parameters())


def test_another_adapter_for_a_block_leaves_the_gradients_that_are_accumulated():
    torch.manual_seed(0)
    config = {"r": 2, "target_modules": ["body"]}
    model = apply_lora(NetWithHead(), LoRAConfig(modules_to_save=["score"], **config))
    filled(model, "default")
    add_adapter(model, "fr", LoRAConfig(**config))
    twin, x = copy.deepcopy(model), torch.randn(4, 6)
    for each in (model, twin):
        each(x).sum().backward()
        if each is model:
            with use_adapter(model, "fr"):
                assert not any(p.grad is not None for p in model.parameters())
                model(x).sum().backward()
                model.zero_grad()
        each(x).square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(map(torch.equal, gradients, [p.grad for p in twin.parameters() if p.requires_grad]))


def test_the_context_manager_puts_the_adapter_back_also_after_an_error():
    model = two()
    with use_adapter(model, "fr"):
        assert active_adapter(model) == "fr"
    assert active_adapter(model) == "default"
    with pytest.raises(RuntimeError), use_adapter(model, "fr"):
        raise RuntimeError
    assert active_adapter(model) == "default"
